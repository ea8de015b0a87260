//! Workers and their loop threads.

use proxy_golang_abi::feature::Feature;

use super::{Findings, Library, State};
use crate::report::host;
use crate::sys::platform;

impl Library {
    pub(super) fn loop_hook(
        &self,
        s: &mut State,
        worker: u32,
        f: &mut Findings,
        in_host: Option<&'static str>,
    ) {
        self.hook(f, in_host);
        s.loops.insert(platform::tid());
        if self.n_workers != 0 && worker >= self.n_workers {
            f.push(host(
                "PXG-THR-001",
                format!("worker {worker}"),
                format!("an index below n_workers, {}", self.n_workers),
            ));
        }
        let w = s.workers.entry(worker).or_default();
        if !w.up && !w.missing_reported {
            w.missing_reported = true;
            f.push(host(
                "PXG-THR-003",
                format!(
                    "`{}` of worker {worker} before its on_worker(up)",
                    f.place.function
                ),
                "on_worker(up) is the first hook of each worker",
            ));
        }
    }

    pub(crate) fn worker_enter(
        &self,
        worker: u32,
        up: u32,
        in_host: Option<&'static str>,
    ) -> Findings {
        const LEAST_STACK: usize = 256 << 10;
        let mut f = Findings::at("on_worker");
        self.hook(&mut f, in_host);
        let stack = platform::stack_size();
        let mut s = self.lock();
        if up == 1 {
            s.loops.insert(platform::tid());
        }
        let features = self.features;
        let w = s.workers.entry(worker).or_default();
        if up > 1 {
            f.push(host(
                "PXG-ABI-005",
                format!("on_worker with up {up}"),
                "1 for up, 0 for down",
            ));
        }
        if up == 1 && w.up {
            f.push(host(
                "PXG-THR-003",
                format!("on_worker(up) a second time for worker {worker}"),
                "once per library and worker",
            ));
        }
        if up == 1
            && let Some(n) = stack.filter(|n| *n < LEAST_STACK)
        {
            f.push(host(
                "PXG-THR-003",
                format!("a loop thread with a stack of {n} bytes"),
                "at least 256 KiB",
            ));
        }
        if up == 0 {
            if !w.up {
                f.push(host(
                    "PXG-THR-003",
                    format!("on_worker(down) for worker {worker}, which is not up"),
                    "down after up",
                ));
            }
            if Feature::BATCH_END.is_in(&features) && w.pended > 0 && w.batches == 0 {
                f.push(host(
                    "PXG-THR-004",
                    format!(
                        "no on_batch_end on worker {worker}, and {} events answered PENDING",
                        w.pended
                    ),
                    "once per loop iteration in which an event answered PENDING",
                ));
            }
        }
        if self.n_workers != 0 && worker >= self.n_workers {
            f.push(host(
                "PXG-THR-001",
                format!("worker {worker}"),
                format!("an index below n_workers, {}", self.n_workers),
            ));
        }
        w.up = up == 1;
        f
    }

    pub(crate) fn batch_end_enter(&self, worker: u32, in_host: Option<&'static str>) -> Findings {
        let mut f = Findings::at("on_batch_end");
        let mut s = self.lock();
        self.loop_hook(&mut s, worker, &mut f, in_host);
        if !Feature::BATCH_END.is_in(&self.features) {
            f.push(host(
                "PXG-NEG-009",
                "on_batch_end, and the feature BATCH_END is clear",
                "the hook is called only with the feature",
            ));
        }
        let w = s.workers.entry(worker).or_default();
        if w.since_batch == 0 {
            f.push(host(
                "PXG-THR-004",
                "on_batch_end, and no event answered PENDING since the last one",
                "once per loop iteration in which an event answered PENDING",
            ));
        }
        w.since_batch = 0;
        w.batches += 1;
        f
    }
}
