//! Timeouts: a binary heap by deadline, and a hash of (tag, row) so that they can be cancelled. Rows are reused, nothing is
//! allocated once the table has grown to its largest use.

const NONE: u32 = u32::MAX;
const BUCKETS: usize = 1024;

#[derive(Clone, Copy)]
struct Timer {
    deadline_ns: u64,
    /// Equal deadlines fire in the order in which they were set.
    sequence: u64,
    tag: i32,
    row: i32,
    heap_index: u32,
    /// Next of the same bucket, or of the free list.
    next: u32,
}

pub struct Timers {
    timers: Vec<Timer>,
    heap: Vec<u32>,
    buckets: Vec<u32>,
    free: u32,
    sequence: u64,
}

impl Timers {
    pub fn new() -> Self {
        Timers { timers: Vec::new(), heap: Vec::new(), buckets: vec![NONE; BUCKETS], free: NONE, sequence: 0 }
    }

    pub fn len(&self) -> usize {
        self.heap.len()
    }

    pub fn next_deadline_ns(&self) -> Option<u64> {
        self.heap.first().map(|&t| self.timers[t as usize].deadline_ns)
    }

    pub fn add(&mut self, deadline_ns: u64, tag: i32, row: i32) {
        self.sequence += 1;
        let bucket = bucket_of(tag, row);
        let timer =
            Timer { deadline_ns, sequence: self.sequence, tag, row, heap_index: self.heap.len() as u32, next: self.buckets[bucket] };
        let t = if self.free == NONE {
            self.timers.push(timer);
            self.timers.len() as u32 - 1
        } else {
            let t = self.free;
            self.free = self.timers[t as usize].next;
            self.timers[t as usize] = timer;
            t
        };
        self.buckets[bucket] = t;
        self.heap.push(t);
        self.sift_up(self.heap.len() - 1);
    }

    /// Removes the earliest timer if it is due.
    pub fn pop_due(&mut self, now_ns: u64) -> Option<(i32, i32)> {
        let t = *self.heap.first()?;
        let timer = self.timers[t as usize];
        if timer.deadline_ns > now_ns {
            return None;
        }
        self.remove(t);
        Some((timer.tag, timer.row))
    }

    /// Removes one timer of (tag, row); false when there is none.
    pub fn cancel_one(&mut self, tag: i32, row: i32) -> bool {
        let mut t = self.buckets[bucket_of(tag, row)];
        while t != NONE {
            let timer = &self.timers[t as usize];
            if timer.tag == tag && timer.row == row {
                self.remove(t);
                return true;
            }
            t = timer.next;
        }
        false
    }

    fn remove(&mut self, t: u32) {
        let Timer { tag, row, heap_index, next, .. } = self.timers[t as usize];
        let bucket = bucket_of(tag, row);
        if self.buckets[bucket] == t {
            self.buckets[bucket] = next;
        } else {
            let mut p = self.buckets[bucket];
            while self.timers[p as usize].next != t {
                p = self.timers[p as usize].next;
            }
            self.timers[p as usize].next = next;
        }
        let i = heap_index as usize;
        self.heap.swap_remove(i);
        if i < self.heap.len() {
            self.timers[self.heap[i] as usize].heap_index = i as u32;
            self.sift_down(i);
            self.sift_up(i);
        }
        self.timers[t as usize].next = self.free;
        self.free = t;
    }

    fn before(&self, a: usize, b: usize) -> bool {
        let (a, b) = (&self.timers[self.heap[a] as usize], &self.timers[self.heap[b] as usize]);
        (a.deadline_ns, a.sequence) < (b.deadline_ns, b.sequence)
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.heap.swap(a, b);
        self.timers[self.heap[a] as usize].heap_index = a as u32;
        self.timers[self.heap[b] as usize].heap_index = b as u32;
    }

    fn sift_up(&mut self, mut i: usize) {
        while i > 0 && self.before(i, (i - 1) / 2) {
            self.swap(i, (i - 1) / 2);
            i = (i - 1) / 2;
        }
    }

    fn sift_down(&mut self, mut i: usize) {
        loop {
            let mut least = i;
            for child in [2 * i + 1, 2 * i + 2] {
                if child < self.heap.len() && self.before(child, least) {
                    least = child;
                }
            }
            if least == i {
                return;
            }
            self.swap(i, least);
            i = least;
        }
    }
}

fn bucket_of(tag: i32, row: i32) -> usize {
    let h = (tag as u32).wrapping_mul(0x9e37_79b1) ^ (row as u32).wrapping_mul(0x85eb_ca6b);
    (h ^ (h >> 15)) as usize % BUCKETS
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Against a list that is searched from end to end.
    #[test]
    fn agrees_with_a_plain_list() {
        let mut timers = Timers::new();
        let mut list: Vec<(u64, u64, i32, i32)> = Vec::new();
        let mut seed = 7u64;
        let mut draw = |bound: u64| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) % bound
        };
        for step in 0..20_000u64 {
            match draw(4) {
                0 | 1 => {
                    let (deadline, tag, row) = (draw(1000), draw(3) as i32, draw(50) as i32);
                    timers.add(deadline, tag, row);
                    list.push((deadline, step, tag, row));
                }
                2 => {
                    let (tag, row) = (draw(3) as i32, draw(50) as i32);
                    let at = list.iter().rposition(|t| (t.2, t.3) == (tag, row));
                    assert_eq!(timers.cancel_one(tag, row), at.is_some());
                    if let Some(at) = at {
                        list.remove(at);
                    }
                }
                _ => {
                    let now = draw(1000);
                    list.sort_unstable();
                    let due = list.first().filter(|t| t.0 <= now).copied();
                    assert_eq!(timers.pop_due(now), due.map(|t| (t.2, t.3)));
                    if due.is_some() {
                        list.remove(0);
                    }
                    list.sort_unstable_by_key(|t| t.1);
                }
            }
            assert_eq!(timers.len(), list.len());
        }
    }
}
