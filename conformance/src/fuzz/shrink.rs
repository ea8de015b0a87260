//! Makes a scenario smaller as long as it still shows the same.

use std::time::{Duration, Instant};

use crate::scenario::{Bytes, Drive, HostShape, Lines, OWN_CONFS, Open, Scenario, Step};

struct Shrinker<F> {
    best: Scenario,
    shows: F,
    until: Instant,
}

/// The smallest scenario that was found within `time` and of which `shows` says that it shows the same.
pub(super) fn shrink(
    from: Scenario,
    time: Duration,
    shows: impl FnMut(&Scenario) -> bool,
) -> Scenario {
    let mut s = Shrinker {
        best: from,
        shows,
        until: Instant::now() + time,
    };
    loop {
        let before = size(&s.best);
        s.lanes();
        s.steps();
        s.host();
        s.subjects();
        s.opens();
        if size(&s.best) == before || s.over() {
            return s.best;
        }
    }
}

fn size(s: &Scenario) -> usize {
    s.to_text().map_or(0, |t| t.len())
}

impl<F: FnMut(&Scenario) -> bool> Shrinker<F> {
    fn over(&self) -> bool {
        Instant::now() >= self.until
    }

    /// Takes `change` of the best scenario if it shows the same.
    fn attempt(&mut self, change: impl FnOnce(&mut Scenario)) -> bool {
        if self.over() {
            return false;
        }
        let mut c = self.best.clone();
        change(&mut c);
        if c == self.best || c.len() == 0 {
            return false;
        }
        let ok = (self.shows)(&c);
        if ok {
            self.best = c;
        }
        ok
    }

    fn lanes(&mut self) {
        for i in (0..self.best.lanes.len()).rev() {
            if self.best.lanes.len() > 1 {
                // What is left runs on the first thread.
                self.attempt(|s| {
                    s.lanes.remove(i);
                });
            }
        }
    }

    fn steps(&mut self) {
        for lane in 0..self.best.lanes.len() {
            let mut chunk = self.best.lanes[lane].len().div_ceil(2);
            while chunk > 0 {
                let mut at = 0;
                while at < self.best.lanes[lane].len() {
                    let end = (at + chunk).min(self.best.lanes[lane].len());
                    if !self.attempt(|s| {
                        s.lanes[lane].drain(at..end);
                    }) {
                        at = end;
                    }
                }
                if chunk == 1 || self.over() {
                    break;
                }
                chunk = chunk.div_ceil(2);
            }
        }
    }

    fn host(&mut self) {
        if self.attempt(|s| s.host = HostShape::default()) {
            return;
        }
        self.attempt(|s| s.host.without.clear());
        for i in (0..self.best.host.without.len()).rev() {
            self.attempt(|s| {
                s.host.without.remove(i);
            });
        }
        for i in (0..self.best.host.null.len()).rev() {
            self.attempt(|s| {
                s.host.null.remove(i);
            });
        }
        self.attempt(|s| s.host.tail = 0);
        self.attempt(|s| s.host.log_level = 0);
        self.attempt(|s| s.host.workers = 0);
        self.attempt(|s| s.host.small_values = false);
        self.attempt(|s| s.host.collects = false);
    }

    /// Leaves out subjects; the numbers of the others follow.
    fn subjects(&mut self) {
        for gone in (0..self.best.subjects.len()).rev() {
            if self.best.subjects.len() == 1 {
                return;
            }
            self.attempt(|s| {
                let n = s.subjects.len();
                s.subjects.remove(gone);
                let moved = |x: usize| if x % n > gone { x % n - 1 } else { x % n };
                for step in s.lanes.iter_mut().flatten() {
                    match step {
                        Step::Configure { subject, .. } | Step::Offer { subject, .. } => {
                            *subject = moved(*subject);
                        }
                        Step::Open(o) if o.conf < OWN_CONFS => {
                            let to = moved(usize::try_from(o.conf).unwrap_or(0));
                            o.conf = u32::try_from(to).unwrap_or(0);
                        }
                        _ => {}
                    }
                }
            });
        }
    }

    fn opens(&mut self) {
        for lane in 0..self.best.lanes.len() {
            for at in 0..self.best.lanes[lane].len() {
                if matches!(self.best.lanes[lane][at], Step::Open(_)) {
                    self.open(lane, at);
                }
                self.of(lane, at, |step| {
                    if let Step::Offer { bytes, .. } = step {
                        bytes.0.truncate(bytes.0.len() / 2);
                    }
                });
            }
        }
    }

    fn of(&mut self, lane: usize, at: usize, change: impl FnOnce(&mut Step)) -> bool {
        self.attempt(|s| {
            if let Some(step) = s.lanes.get_mut(lane).and_then(|l| l.get_mut(at)) {
                change(step);
            }
        })
    }

    fn open(&mut self, lane: usize, at: usize) {
        let mut set = |change: &dyn Fn(&mut Open)| {
            self.of(lane, at, |step| {
                if let Step::Open(o) = step {
                    change(o);
                }
            })
        };
        if !set(&|o| o.drive = Drive::default()) {
            set(&|o| o.drive.left = false);
            set(&|o| o.drive.struct_tail = 0);
            set(&|o| o.drive.wild_empty = false);
            set(&|o| o.drive.scratch_more = None);
            set(&|o| o.drive.chunks = None);
            set(&|o| o.drive.max_body = None);
            set(&|o| o.drive.abort_pending = false);
            set(&|o| o.drive.late_end = false);
            set(&|o| o.drive.local_origin = false);
            set(&|o| o.drive.unknown_flags = 0);
            set(&|o| o.drive.lies.clear());
            set(&|o| o.drive.borrow_grace_ms = 0);
            set(&|o| o.drive.abort_at = None);
            set(&|o| o.drive.turns = None);
        }
        for side in [request as fn(&mut Open) -> &mut Lines, response] {
            set(&|o| side(o).trailers = None);
            set(&|o| {
                side(o).reads.clear();
                side(o).fields.retain(|f| f.0.0 != b"content-length");
            });
            // Halves, quarters, and so on of what is left, then each by itself.
            for part in [2, 4, 8, 16, 32, 64, 128, 200] {
                for n in 0..part {
                    set(&|o| cut(&mut side(o).fields, part, n, |f| !f.0.0.starts_with(b":")));
                    if part <= 32 {
                        set(&|o| {
                            cut(&mut side(o).reads, part, n, |_| true);
                            side(o).fields.retain(|f| f.0.0 != b"content-length");
                        });
                    }
                }
            }
            set(&|o| {
                for f in &mut side(o).fields {
                    if !f.0.0.starts_with(b":") && f.1.0.len() > 8 {
                        f.1 = Bytes::from("v");
                    }
                }
            });
            for _ in 0..8 {
                set(&|o| {
                    for r in &mut side(o).reads {
                        r.0.truncate(r.0.len().div_ceil(2));
                    }
                    side(o).fields.retain(|f| f.0.0 != b"content-length");
                });
            }
        }
    }
}

fn request(o: &mut Open) -> &mut Lines {
    &mut o.request
}

fn response(o: &mut Open) -> &mut Lines {
    &mut o.response
}

/// Leaves out the `n`th of `parts` parts, but for elements that must stay.
fn cut<T>(v: &mut Vec<T>, parts: usize, n: usize, may_go: impl Fn(&T) -> bool) {
    let each = v.len().div_ceil(parts);
    // A part of nothing, or one that a coarser cut has tried.
    if each == 0 || (each == 1 && v.len() <= parts / 2) || n * each >= v.len() {
        return;
    }
    let range = n * each..(n + 1) * each;
    let mut i = 0;
    v.retain(|x| {
        let keep = !range.contains(&i) || !may_go(x);
        i += 1;
        keep
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::generate;

    #[test]
    fn what_matters_is_left_and_the_rest_goes() {
        let (n, big) = (0..500)
            .map(|n| (n, generate::scenario(3, n, &[], &[])))
            .find(|(_, s)| {
                s.len() > 10
                    && s.lanes
                        .iter()
                        .flatten()
                        .any(|x| matches!(x, Step::Wait { .. }))
            })
            .unwrap();
        let mut tries = 0;
        let small = shrink(big.clone(), Duration::from_secs(60), |s| {
            tries += 1;
            s.lanes
                .iter()
                .flatten()
                .any(|x| matches!(x, Step::Wait { .. }))
        });
        assert_eq!(small.len(), 1, "execution {n}: {small:?}");
        assert_eq!(small.host, HostShape::default());
        assert!(tries < 200, "{tries}");
        // A field that is needed stays, and its neighbours go.
        let needs = |s: &Scenario| {
            s.lanes.iter().flatten().any(|x| match x {
                Step::Open(o) => o.request.fields.iter().any(|f| f.0.0 == b":path"),
                _ => false,
            })
        };
        let small = shrink(big, Duration::from_secs(60), |s| needs(s));
        let Step::Open(o) = &small.lanes[0][0] else {
            panic!("{small:?}")
        };
        assert!(o.request.fields.iter().all(|f| f.0.0.starts_with(b":")));
        assert_eq!(o.drive, Drive::default());
    }
}
