//! In which order stages run: one after the other, and beside them those that mostly wait.

use std::io::Write as _;
use std::sync::{Condvar, Mutex, PoisonError};

use super::report::Ended;
use super::stages::Stage;

/// Stages that mostly wait, for proxies and for time to pass, and what has to have ended before them.
const BESIDE: &[(&str, &[&str])] = &[];

struct State<'a> {
    waiting: Vec<&'a Stage>,
    running: Vec<&'static str>,
    ended: Vec<Ended>,
    stop: bool,
}

/// Runs them by `run`, at most two at a time; what ended, in the order of `chosen`.
pub(super) fn run(
    chosen: &[&Stage],
    fail_fast: bool,
    run: &(dyn Fn(&Stage) -> Ended + Sync),
) -> Vec<Ended> {
    let state = Mutex::new(State {
        waiting: chosen.to_vec(),
        running: Vec::new(),
        ended: Vec::new(),
        stop: false,
    });
    let changed = Condvar::new();
    let lane = |beside: bool| {
        loop {
            let mut now = state.lock().unwrap_or_else(PoisonError::into_inner);
            let stage = loop {
                if now.stop || now.waiting.is_empty() {
                    return;
                }
                if let Some(next) = next(&now, beside) {
                    break now.waiting.remove(next);
                }
                now = changed.wait(now).unwrap_or_else(PoisonError::into_inner);
            };
            now.running.push(stage.name);
            drop(now);
            let end = run(stage);
            let mut now = state.lock().unwrap_or_else(PoisonError::into_inner);
            now.running.retain(|name| *name != end.name);
            println!(
                "[{:2}/{}] {:width$} {}",
                now.ended.len() + 1,
                chosen.len(),
                end.name,
                end.line(),
                width = chosen.iter().map(|s| s.name.len()).max().unwrap_or(0)
            );
            let _ = std::io::stdout().flush();
            now.stop |= fail_fast && end.error.is_some();
            now.ended.push(end);
            changed.notify_all();
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| lane(true));
        lane(false);
    });
    let state = state.into_inner().unwrap_or_else(PoisonError::into_inner);
    let mut ended = state.ended;
    ended.sort_by_key(|end| chosen.iter().position(|stage| stage.name == end.name));
    ended
}

/// The next stage for a lane. Stages that wait are for the lane beside, as soon as what they come after has ended;
/// the other lane has the rest, and helps when nothing else is left.
fn next(state: &State<'_>, beside: bool) -> Option<usize> {
    let after = |stage: &Stage| BESIDE.iter().find(|(name, _)| *name == stage.name);
    let free = |stage: &Stage| {
        let open = |name: &&'static str| {
            state.running.contains(name) || state.waiting.iter().any(|other| other.name == *name)
        };
        !after(stage).is_some_and(|(_, before)| before.iter().any(&open))
    };
    let mut stages = state.waiting.iter();
    let mine = stages.position(|stage| after(stage).is_some() == beside && free(stage));
    if beside || mine.is_some() {
        return mine;
    }
    state.waiting.iter().position(|stage| free(stage))
}
