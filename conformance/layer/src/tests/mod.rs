//! Wrong hosts and guests, call by call: each must be found by its own rule and by no other; and right ones, which must
//! be found by none.

mod rig;
mod wrong_events;
mod wrong_guests;
mod wrong_lives;

use rig::{Ev, Rig, answer, config};

/// A script and the one rule that it breaks.
type Wrong = (&'static str, &'static str, fn(&mut Rig));

fn each_breaks_its_rule(side: &str, all: &[Wrong]) {
    for (rule, name, script) in all {
        let mut rig = Rig::new();
        script(&mut rig);
        let found = rig.found();
        assert!(
            found.iter().any(|(r, s, _)| r == rule && *s == side),
            "{name}: {rule} was not found, but {found:#?}"
        );
        assert!(
            found.iter().all(|(r, _, _)| r == rule),
            "{name}: more than {rule} was found: {found:#?}"
        );
    }
}
