//! Whether to look for completions for a while before sleeping. Waking a sleeping thread costs tens of microseconds (an interrupt to another core,
//! in a guest by way of the hypervisor), most of a request's time when a client sends one after the other. So a queue that is woken again and
//! again soon after it fell asleep stays awake for so long, as long as that is worth it and nobody else wants the core:
//!
//! ```text
//! asleep: `wanted` more short sleeps than others ─────────> awake, with full credit
//! awake:  something came while it looked: credit + 1 ──┐
//!         nothing came, or another thread ran here: - 16 ┴─> no credit left: asleep, and `wanted` doubles
//! ```

/// How long it looks.
pub const LOOK_NS: u64 = 80_000;
/// A sleep that looking would have saved, with the time that waking takes.
const SHORT_NS: u64 = 100_000;
/// After one so long, what came before says nothing.
const LONG_NS: u64 = 1_000_000;
/// Between two looks at the clock: longer, and another thread (or guest) had the core.
pub const GAP_NS: u64 = 15_000;
const CREDIT_MAX: i32 = 64;
/// One look in vain costs what sixteen gain: where another process has the client's core, client and reactor are better off sharing theirs.
const LOSS: i32 = 16;
const WANTED_MIN: u32 = 32;
const WANTED_MAX: u32 = 1 << 12;

pub struct Patience {
    /// 0: it sleeps at once.
    credit: i32,
    /// Short sleeps, less others.
    short: u32,
    wanted: u32,
    /// Looks in a row that found something.
    found: u32,
}

impl Patience {
    pub fn new() -> Self {
        Patience { credit: 0, short: 0, wanted: WANTED_MIN, found: 0 }
    }

    pub fn looks(&self) -> bool {
        self.credit > 0
    }

    pub fn slept(&mut self, ns: u64) {
        if ns >= SHORT_NS {
            self.short = if ns >= LONG_NS { 0 } else { self.short.saturating_sub(2) };
            return;
        }
        self.short += 1;
        if self.short >= self.wanted {
            self.short = 0;
            self.found = 0;
            self.credit = CREDIT_MAX;
        }
    }

    /// `alone`: nobody else ran on this core meanwhile.
    pub fn looked(&mut self, found: bool, alone: bool) {
        if found && alone {
            self.credit = CREDIT_MAX.min(self.credit + 1);
            self.found += 1;
            if self.found >= self.wanted {
                self.found = 0;
                self.wanted = WANTED_MIN.max(self.wanted / 2);
            }
            return;
        }
        self.found = 0;
        self.credit -= LOSS;
        if self.credit <= 0 {
            self.credit = 0;
            self.short = 0;
            self.wanted = WANTED_MAX.min(self.wanted * 2);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleep(patience: &mut Patience, times: u32, ns: u64) {
        for _ in 0..times {
            patience.slept(ns);
        }
    }

    #[test]
    fn only_sleeps_that_are_short_again_and_again_make_it_look() {
        let mut patience = Patience::new();
        for _ in 0..100 {
            sleep(&mut patience, WANTED_MIN - 1, SHORT_NS - 1);
            sleep(&mut patience, 1, LONG_NS);
            sleep(&mut patience, 2, SHORT_NS - 1);
            sleep(&mut patience, 1, SHORT_NS);
        }
        assert!(!patience.looks());
        sleep(&mut patience, WANTED_MIN, SHORT_NS - 1);
        assert!(patience.looks());
    }

    #[test]
    fn looking_in_vain_or_not_alone_ends_it_and_it_begins_again_ever_later() {
        for (found, alone) in [(false, true), (true, false), (false, false)] {
            let mut patience = Patience::new();
            let mut wanted = WANTED_MIN;
            for _ in 0..20 {
                sleep(&mut patience, wanted - 1, 0);
                assert!(!patience.looks());
                patience.slept(0);
                assert!(patience.looks());
                let mut looks = 0;
                while patience.looks() {
                    patience.looked(found, alone);
                    looks += 1;
                }
                assert_eq!(looks, CREDIT_MAX / LOSS);
                wanted = WANTED_MAX.min(wanted * 2);
            }
        }
    }

    #[test]
    fn a_look_in_vain_now_and_then_does_not_end_it() {
        let mut patience = Patience::new();
        sleep(&mut patience, WANTED_MIN, 0);
        for _ in 0..1000 {
            for _ in 0..LOSS {
                patience.looked(true, true);
            }
            patience.looked(false, true);
            assert!(patience.looks());
        }
    }
}
