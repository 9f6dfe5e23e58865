//! How likely each action is under a seed. Each seed leaves out some kinds of faults: schedules with few
//! kinds reach states that are rare when all of them are mixed.

use fastrand::Rng;

use super::{actions::Action, scheduler::Ending};

pub(super) struct Odds {
    /// Steps with faults.
    pub steps: usize,
    /// Percentage of the steps that resume a task if one waits.
    pub resume_percent: u32,
    /// Percentage of the calls that fail, and of the responses that are lost.
    pub failure_percent: u32,
    actions: Vec<(Action, u32)>,
    endings: Vec<(Ending, u32)>,
}

impl Odds {
    pub fn draw(rng: &mut Rng) -> Self {
        let choose = |rng: &mut Rng, weights: &[u32]| weights[rng.usize(..weights.len())];
        let scaled = |(action, weight): &(Action, u32)| {
            let rate =
                if action.is_fault() { choose(rng, &[0, 0, 1, 2]) } else { choose(rng, &[1, 2]) };
            (*action, weight * rate)
        };
        let actions = Action::ALL.iter().map(scaled).collect();
        let endings = vec![
            (Ending::Success, 6),
            (Ending::Transient, choose(rng, &[0, 2, 6])),
            (Ending::Permanent, choose(rng, &[0, 1, 2])),
            (Ending::Panic, choose(rng, &[0, 1])),
            (Ending::AsksForRetry, choose(rng, &[0, 2])),
        ];
        Self {
            steps: rng.usize(50..250),
            resume_percent: rng.u32(40..90),
            failure_percent: choose(rng, &[0, 2, 10, 30]),
            actions,
            endings,
        }
    }

    pub fn choose_action(&self, rng: &mut Rng) -> Action {
        choose_weighted(rng, &self.actions)
    }

    pub fn choose_ending(&self, rng: &mut Rng) -> Ending {
        choose_weighted(rng, &self.endings)
    }
}

fn choose_weighted<T: Copy>(rng: &mut Rng, choices: &[(T, u32)]) -> T {
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
