//! Named steps at which a test can make a process fail. Only the feature `fail-points` compiles them in, and only
//! `cargo test` enables it.
//!
//! `SAFELIGHT_FAIL_POINTS="upload.staged=kill;thumbnail.rendered=2*panic"` arms fail points. An action happens
//! once, or as often as the count before it says:
//!
//! | action | effect |
//! |---|---|
//! | `kill` | the process sends SIGKILL to itself, like `kill -9` or the kernel's OOM killer |
//! | `stop` | the process sends SIGSTOP to itself; the test sends SIGCONT |
//! | `hang` | the step never continues |
//! | `panic` | the step panics |
//! | `until FILE` | the step continues once the file exists |

#[cfg(feature = "fail-points")]
mod armed {
    use std::{
        collections::HashMap,
        sync::{LazyLock, Mutex, PoisonError},
    };

    use rustix::process::{Signal, getpid, kill_process};

    struct Armed {
        times: u32,
        action: String,
    }

    static POINTS: LazyLock<Mutex<HashMap<String, Armed>>> = LazyLock::new(|| {
        let text = std::env::var("SAFELIGHT_FAIL_POINTS").unwrap_or_default();
        Mutex::new(text.split(';').filter_map(parse).collect())
    });

    fn parse(point: &str) -> Option<(String, Armed)> {
        let (name, action) = point.split_once('=')?;
        let (times, action) = match action.split_once('*') {
            Some((times, action)) => (times.parse().ok()?, action),
            None => (1, action),
        };
        Some((name.trim().to_owned(), Armed { times, action: action.trim().to_owned() }))
    }

    async fn until(file: &std::path::Path) {
        while !file.exists() {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }

    /// See [`super::hit`].
    #[allow(clippy::missing_panics_doc)] // only on request of a test
    pub async fn hit(name: &str) {
        let action = {
            let mut points = POINTS.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(armed) = points.get_mut(name).filter(|armed| armed.times > 0) else { return };
            armed.times -= 1;
            armed.action.clone()
        };
        // Tests wait for this line.
        eprintln!("fail point {name}: {action}");
        match action.as_str() {
            "kill" => drop(kill_process(getpid(), Signal::KILL)),
            "stop" => {
                let _ = kill_process(getpid(), Signal::STOP);
                // The signal may reach another thread first; this one must not continue before it.
                std::thread::sleep(std::time::Duration::from_millis(100));
            }
            "hang" => std::future::pending().await,
            "panic" => panic!("fail point {name}"),
            other => match other.strip_prefix("until ") {
                Some(file) => until(std::path::Path::new(file)).await,
                None => panic!("fail point {name}: no action `{other}`"),
            },
        }
    }
}

#[cfg(feature = "fail-points")]
pub use armed::hit;

/// A named step. Does nothing unless a test armed it.
#[cfg(not(feature = "fail-points"))]
#[allow(clippy::unused_async)] // the armed one can wait
pub async fn hit(_name: &str) {}
