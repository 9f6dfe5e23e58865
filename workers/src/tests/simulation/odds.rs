//! What a seed makes likely. Each seed leaves some faults out altogether: schedules of few kinds of
//! faults go deeper than those where everything happens at once.

use fastrand::Rng;

use super::{actions::Action, turnstile::Ending};

pub(super) struct Odds {
    /// Steps with faults.
    pub steps: usize,
    /// Percent of the steps that let a task through, if one waits.
    pub eagerness: u32,
    /// Per cent of the calls that fail, and of the answers that get lost.
    pub failure: u32,
    actions: Vec<(Action, u32)>,
    endings: Vec<(Ending, u32)>,
}

impl Odds {
    pub fn draw(rng: &mut Rng) -> Self {
        let draw = |rng: &mut Rng, weights: &[u32]| weights[rng.usize(..weights.len())];
        let weighed = |(action, usual): &(Action, u32)| {
            let rate =
                if action.is_fault() { draw(rng, &[0, 0, 1, 2]) } else { draw(rng, &[1, 2]) };
            (*action, usual * rate)
        };
        let actions = Action::ALL.iter().map(weighed).collect();
        let endings = vec![
            (Ending::Success, 6),
            (Ending::Transient, draw(rng, &[0, 2, 6])),
            (Ending::Permanent, draw(rng, &[0, 1, 2])),
            (Ending::Panic, draw(rng, &[0, 1])),
            (Ending::AsksForRetry, draw(rng, &[0, 2])),
        ];
        Self {
            steps: rng.usize(50..250),
            eagerness: rng.u32(40..90),
            failure: draw(rng, &[0, 2, 10, 30]),
            actions,
            endings,
        }
    }

    pub fn action(&self, rng: &mut Rng) -> Action {
        weighted(rng, &self.actions)
    }

    pub fn ending(&self, rng: &mut Rng) -> Ending {
        weighted(rng, &self.endings)
    }
}

fn weighted<T: Copy>(rng: &mut Rng, choices: &[(T, u32)]) -> T {
    let total: u32 = choices.iter().map(|(_, weight)| weight).sum();
    let mut left = rng.u32(..total);
    for &(choice, weight) in choices {
        if left < weight {
            return choice;
        }
        left -= weight;
    }
    choices[0].0
}
