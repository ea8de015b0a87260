//! What the host answers when the guest calls: completions, wakes, logs, extensions, metrics.

use super::*;

impl StrictHost {
    pub(crate) fn complete(&self, token: u64, outcome: Outcome, in_hook: bool) -> Status {
        let mut i = self.lock();
        i.completes += 1;
        i.owned.extend(outcome.owned());
        while i.gate != Gate::Open && !in_hook {
            i.gate = Gate::Occupied;
            i.gate_token = token;
            self.changed.notify_all();
            i = self.changed.wait(i).unwrap_or_else(PoisonError::into_inner);
        }
        let Some(t) = i.tokens.get_mut(&token) else {
            i.stale += 1;
            drop(i);
            if let Some(other) = self.owner_of(token) {
                note(
                    "PXG-LOAD-006",
                    "completed a token of another host",
                    [format!(
                        "`complete` of ctx {:#x}, a token of ctx {:#x}",
                        self.ctx(),
                        other.ctx()
                    )],
                );
            }
            return Status::STALE;
        };
        match t.state {
            TokenState::Issued | TokenState::Pending => {}
            _ => {
                let after_ok = t.accepted_with.is_some_and(|a| a > 0);
                i.stale += 1;
                drop(i);
                if after_ok {
                    note(
                        "PXG-ABI-013",
                        "completed a token again after the host had answered 1000",
                        ["an unknown positive status means OK".to_string()],
                    );
                }
                return Status::STALE;
            }
        }
        let mut context = t.context.clone();
        context.way = Way::Complete;
        let bad = context.judge(&outcome);
        if bad.is_empty()
            && let Some(&lie) = t.lies.first()
        {
            t.lies.remove(0);
            if lie >= 0 {
                t.accepted_with = Some(lie);
                t.state = match t.state {
                    TokenState::Issued => TokenState::Early(Box::new(outcome)),
                    _ => TokenState::Completed(Box::new(outcome)),
                };
                self.changed.notify_all();
            }
            return Status(lie);
        }
        let answer = if let Some((rule, _)) = bad.first() {
            match *rule {
                "PXG-ABI-005" | "PXG-NEG-003" => Status::UNSUPPORTED,
                "PXG-ASY-010" => Status::STATE,
                _ => Status::ARG,
            }
        } else {
            t.accepted_with = Some(0);
            t.state = match t.state {
                TokenState::Issued => TokenState::Early(Box::new(outcome)),
                _ => TokenState::Completed(Box::new(outcome)),
            };
            Status::OK
        };
        self.changed.notify_all();
        drop(i);
        for (rule, text) in bad {
            note(rule, text, [format!("`complete` answered {}", answer.0)]);
        }
        answer
    }

    pub(crate) fn apply(&self, stream: u64, outcome: Outcome) -> Status {
        let mut i = self.lock();
        i.owned.extend(outcome.owned());
        if !i.handles.get(&stream).is_some_and(|h| h.live) {
            i.stale += 1;
            return Status::STALE;
        }
        let context = Context {
            phase: proxy_golang_abi::Phase(0),
            flags: proxy_golang_abi::EventFlags(0),
            pend_phases: 0,
            features: self.options.features,
            mode: Default::default(),
            subscribe: 0,
            held: false,
            view_len: 0,
            max_body: 0,
            fields: Vec::new(),
            trailers: Vec::new(),
            replied: false,
            way: Way::Apply,
            length_left: None,
        };
        let bad = context.judge(&outcome);
        if bad.is_empty() {
            i.mail
                .entry(stream)
                .or_default()
                .push(Mail::Apply(Box::new(outcome)));
            self.changed.notify_all();
            return Status::OK;
        }
        drop(i);
        for (rule, text) in bad {
            note(rule, text, []);
        }
        Status::ARG
    }

    pub(crate) fn wake(&self, stream: u64, arg: u64) -> Status {
        let mut i = self.lock();
        match i.handles.get(&stream) {
            Some(h) if h.live && h.wakes => {}
            Some(h) if h.live => return Status::STATE,
            _ => {
                i.stale += 1;
                return Status::STALE;
            }
        }
        let mail = i.mail.entry(stream).or_default();
        let queued = mail.iter_mut().find_map(|m| match m {
            Mail::Wake(a) => Some(a),
            Mail::Apply(_) => None,
        });
        match queued {
            Some(a) => *a |= arg,
            None => mail.push(Mail::Wake(arg)),
        }
        self.changed.notify_all();
        Status::OK
    }

    pub(crate) fn log(&self, level: LogLevel, text: Option<Vec<u8>>) {
        if text.is_none() {
            note(
                "PXG-ABI-012",
                "handed memory that can't be read to `log`",
                [],
            );
        }
        let mut i = self.lock();
        i.log_calls += 1;
        if i.logs.len() < 200 {
            let text = String::from_utf8_lossy(&text.unwrap_or_default()).into_owned();
            i.logs.push((level.0, text));
        }
    }

    pub(crate) fn get_ext(&self, id: Option<Vec<u8>>) -> u64 {
        let Some(id) = id else {
            note(
                "PXG-ABI-012",
                "handed memory that can't be read to `get_ext`",
                [],
            );
            return 0;
        };
        let id = String::from_utf8_lossy(&id).into_owned();
        {
            let mut i = self.lock();
            if !i.ext_ids.contains(&id) {
                i.ext_ids.push(id.clone());
            }
        }
        if id == proxy_golang_abi::ext::METRICS_V1_ID {
            self.metrics
        } else {
            0
        }
    }

    pub(crate) fn define_metric(&self, name: Vec<u8>) -> Result<u32, Status> {
        let mut i = self.lock();
        let n = match i.metrics.iter().position(|m| *m == name) {
            Some(n) => n,
            None => {
                i.metrics.push(name);
                i.metrics.len() - 1
            }
        };
        u32::try_from(n + 1).map_err(|_| Status::LIMIT)
    }

    pub(crate) fn record_metric(&self, id: u32) -> Status {
        if id > 0 && id as usize <= self.lock().metrics.len() {
            Status::OK
        } else {
            Status::NOTFOUND
        }
    }
}
