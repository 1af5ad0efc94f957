//! Recording of what hot loops execute, for traces.
//!
//! Problem: most time is spent in few loops, whose code is in several blocks; which way their branches and indirect jumps
//! usually go is known only when they run. Counting in generated code would cost all code, to find the little that is hot.
//! Strategy: *samples*. Whenever generated code is left because somebody asked for it, it is at the start of a loop or at the target of
//! an indirect jump. A [sampler](super::Remote::kick) asks once a millisecond. A block that was
//! found often enough is the *head* of a trace: the execution loop runs the guest one instruction at a time and notes where it
//! goes, for some rounds that come back to the head, or until something gets in the way. If there is a way that it goes at least
//! every other time, the translator makes a trace of it, a block that stands in for the head's. What is usual may have been rare
//! just then, so heads of traces are looked at again, though seldom, and another way takes the place of the first.
//!
//! Invariants:
//! - A path is a hint: the trace made from it is right for whatever the guest does later.
//! - All instructions of a path were executed in one block mode, and lie in two pages at most. The address space was the same at
//!   its start and at its end.
//! - Recording takes a small share of the time, whatever the guest does: see [`Recorder::sampled`].

use std::num::NonZeroU32;
use std::ops::Range;

use crate::guest::BlockKey;
use crate::memory::{PAGE_MASK, PAGE_SIZE};

/// Instructions of a trace, at most.
pub(super) const MAX_TRACE: usize = 256;
/// Of a trace that does not lead back to its start.
const MAX_STRAIGHT: usize = 64;
/// Executions of one instruction on a path, at most: more are a loop within, which is hotter than the one around it.
const MAX_VISITS: usize = 16;
/// Rounds of a loop that are recorded, at most.
const MAX_ROUNDS: usize = 8;
/// Instructions that are executed for one recording, at most.
const MAX_STEPS: usize = 3 * MAX_TRACE;
/// Instructions that may be recorded for each sample: some 2 µs each.
const STEPS_PER_SAMPLE: i32 = 32;
/// Instructions that may be recorded at a time in the end.
const MAX_BUDGET: i32 = 4 * MAX_TRACE as i32;

/// Bytes of any guest's longest instruction, or more.
const LONGEST: u64 = 16;

/// What becomes of a recording after an instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Progress {
    /// The instruction is on the path: it is to be executed.
    Execute,
    /// The path is complete.
    Done,
}

/// Records the path of one trace at a time.
#[derive(Debug)]
pub(super) struct Recorder {
    /// The head, if something is being recorded, and the address space.
    head: Option<(BlockKey, u64)>,
    /// Addresses of the instructions executed so far, the first being the head's.
    path: Vec<u64>,
    /// The pages of the path.
    pages: [Option<u64>; 2],
    /// Where in the path rounds begin: wherever the head is.
    starts: Vec<usize>,
    /// The path that a trace is to have.
    chosen: Option<Range<usize>>,
    /// Instructions executed so far, rounds of repeated ones counted each.
    steps: usize,
    /// Instructions that may still be executed for recordings.
    budget: i32,
}

impl Recorder {
    pub fn new() -> Recorder {
        Recorder {
            head: None,
            path: Vec::new(),
            pages: [None; 2],
            starts: Vec::new(),
            chosen: None,
            steps: 0,
            budget: MAX_BUDGET,
        }
    }

    /// Notes a sample; whether there is time to record something.
    pub fn sampled(&mut self) -> bool {
        self.budget = (self.budget + STEPS_PER_SAMPLE).min(MAX_BUDGET);
        self.budget > 0
    }

    /// Begins to record at `head`, in an address space.
    pub fn start(&mut self, head: BlockKey, space: u64) {
        self.head = Some((head, space));
        self.path.clear();
        self.pages = [None; 2];
        self.steps = 0;
        self.starts.clear();
        self.chosen = None;
    }

    /// The head and address space of what is to be recorded.
    pub fn head(&self) -> Option<(BlockKey, u64)> {
        self.head
    }

    /// The guest is about to execute the instruction at `key`, in the address space of the head.
    pub fn step(&mut self, key: BlockKey) -> Progress {
        self.budget -= 1;
        let Some((head, _)) = self.head else { return Progress::Done };
        self.steps += 1;
        let elsewhere = self.path.is_empty() && key != head;
        if elsewhere || self.steps > MAX_STEPS || key.mode != head.mode || self.path.len() >= 2 * MAX_TRACE {
            return Progress::Done;
        }
        if self.path.last() == Some(&key.pc) {
            // The next round of a repeated instruction.
            return Progress::Execute;
        }
        if key.pc == head.pc {
            self.starts.push(self.path.len());
            if self.knows_enough() {
                return Progress::Done;
            }
        }
        let round = self.starts.last().copied().unwrap_or(0);
        let visits = self.path[round..].iter().filter(|pc| **pc == key.pc).count();
        if visits >= MAX_VISITS {
            self.head = None;
            return Progress::Done;
        }
        if !self.has_room(key.pc) {
            return Progress::Done;
        }
        self.path.push(key.pc);
        Progress::Execute
    }

    /// A round is at its end: whether it is known which way the loop goes.
    fn knows_enough(&mut self) -> bool {
        let rounds = self.starts.len() - 1;
        let period = self.path.len() / 2;
        if rounds >= 4 && rounds.is_multiple_of(2) && self.path[..period] == self.path[period..] {
            // Several rounds that are repeated as a whole may differ; if they do not, one will do.
            let round = self.starts[1];
            let alike = self.path.chunks(round).all(|other| *other == self.path[..round]);
            self.chosen = Some(0..if alike { round } else { period });
            return true;
        }
        rounds >= MAX_ROUNDS
    }

    /// The round that was taken most often, if it was taken often enough.
    fn usual_round(&self) -> Option<Range<usize>> {
        let ends = self.starts.iter().skip(1).copied();
        let rounds: Vec<Range<usize>> = self.starts.iter().zip(ends).map(|(from, to)| *from..to).collect();
        let taken = |round: &Range<usize>| {
            rounds.iter().filter(|other| self.path[(*other).clone()] == self.path[round.clone()]).count()
        };
        let usual = rounds.iter().max_by_key(|round| taken(round))?;
        (taken(usual) >= 2 && 2 * taken(usual) >= rounds.len()).then(|| usual.clone())
    }

    /// Sees to it that the instruction at `pc` is in the pages of the path, if there may be one more.
    fn has_room(&mut self, pc: u64) -> bool {
        // Wherever its last byte is: its length is not known here. Behind 4 GiB, or the end, addresses may begin anew.
        if (pc as u32).checked_add(LONGEST as u32 - 1).is_none() {
            return false;
        }
        [pc, pc.wrapping_add(LONGEST - 1)].into_iter().all(|address| {
            let page = address & !PAGE_MASK;
            if self.pages.contains(&Some(page)) {
                return true;
            }
            match self.pages.iter_mut().find(|slot| slot.is_none()) {
                Some(slot) => {
                    *slot = Some(page);
                    true
                }
                None => false,
            }
        })
    }

    /// Ends the recording: the head and the path, if it is worth a trace. A path that leads back to the head has it at its end,
    /// too.
    pub fn finish(&mut self) -> Option<(BlockKey, &[u64])> {
        let (head, _) = self.head.take()?;
        if self.starts.len() < 2 {
            self.path.truncate(MAX_STRAIGHT);
        } else {
            let chosen = self.chosen.take().or_else(|| self.usual_round())?;
            self.path.truncate(chosen.end);
            self.path.drain(..chosen.start);
            self.path.push(head.pc);
        }
        (self.path.len() > 2).then_some((head, &self.path))
    }
}

/// Tells the paths of traces with the same head from each other, as well as a hash can.
pub(super) type Route = NonZeroU32;

/// The route along a path.
pub(super) fn route(path: &[u64]) -> Route {
    let hash =
        path.iter().fold(0u64, |hash, pc| (hash ^ pc).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(23));
    NonZeroU32::new((hash >> 32) as u32).unwrap_or(NonZeroU32::MIN)
}

/// How many rounds of a path a trace has: a few, if it leads back to its start and is short, as of other loops of one block.
pub(super) fn rounds(path: &[u64]) -> usize {
    const MAX_ROUNDS: usize = 4;
    const MAX_UNROLLED: usize = 40;
    let round = path.len() - 1;
    if path[0] == path[round] { (MAX_UNROLLED / round.max(1)).clamp(1, MAX_ROUNDS) } else { 1 }
}

/// A path that leads back to its start, taken so many times.
pub(super) fn repeated(path: &[u64], rounds: usize) -> Vec<u64> {
    let (first, rest) = path.split_at(1);
    first.iter().chain(std::iter::repeat_n(rest, rounds).flatten()).copied().collect()
}

/// What a trace was made from, in its first page and in the one at the guest-virtual address `second`, if it has another: the
/// offsets of the first byte of its instructions, and of one behind the last. Where exactly the last one ends does not matter.
pub(super) fn spans(path: &[u64], second: Option<u64>) -> [(u16, u16); 2] {
    let of_page = |page: u64| {
        let mut span = (PAGE_SIZE as u16, 0);
        for &pc in path {
            let start = pc.wrapping_sub(page) as i64;
            let end = start.wrapping_add(LONGEST as i64);
            if end > 0 && start < PAGE_SIZE as i64 {
                span.0 = span.0.min(start.max(0) as u16);
                span.1 = span.1.max(end.min(PAGE_SIZE as i64) as u16);
            }
        }
        span
    };
    [of_page(path[0] & !PAGE_MASK), second.map_or((0, 0), of_page)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(pc: u64) -> BlockKey {
        BlockKey::new(pc, 5)
    }

    /// The path that is recorded while the guest executes these, the first being the head.
    fn recorded(pcs: impl IntoIterator<Item = u64>) -> Option<Vec<u64>> {
        let mut recorder = Recorder::new();
        let mut pcs = pcs.into_iter().peekable();
        recorder.start(key(*pcs.peek().unwrap()), 0);
        for pc in pcs {
            if recorder.step(key(pc)) == Progress::Done {
                break;
            }
        }
        recorder.finish().map(|(head, path)| {
            assert_eq!(head.pc, path[0]);
            path.to_vec()
        })
    }

    #[test]
    fn a_loop_is_recorded_to_its_start() {
        let round = [0x1000, 0x1003, 0x1008, 0x1010];
        let rounds = round.into_iter().cycle().take(100);
        assert_eq!(recorded(rounds).unwrap(), [0x1000, 0x1003, 0x1008, 0x1010, 0x1000]);
    }

    #[test]
    fn a_head_that_is_executed_twice_a_round_does_not_end_it() {
        let round = [0x1000, 0x1100, 0x1000, 0x1200, 0x1300];
        let rounds = round.into_iter().cycle().take(100);
        assert_eq!(recorded(rounds).unwrap(), [0x1000, 0x1100, 0x1000, 0x1200, 0x1300, 0x1000]);
    }

    #[test]
    fn a_loop_that_goes_another_way_each_time_is_none() {
        let pcs = (0..300).flat_map(|n| [0x1000, 0x1100 + n % 7, 0x1200 + n % 11 * n]);
        assert_eq!(recorded(pcs), None);
    }

    #[test]
    fn the_usual_round_is_chosen_of_several() {
        let rare = [0x1000, 0x1003, 0x1100];
        let usual = [0x1000, 0x1003, 0x1008];
        let rounds = [rare, rare, usual, usual, usual, rare, rare, usual, rare];
        assert_eq!(recorded(rounds.into_iter().flatten()).unwrap(), [0x1000, 0x1003, 0x1008, 0x1000]);
        assert_ne!(route(&rare), route(&usual));
        // Less than half of them.
        let rounds = [usual, rare, [0x1000, 0x1005, 0x1008], usual, [0x1000, 0x1005, 0x1200], usual];
        assert_eq!(
            recorded(rounds.into_iter().flatten().chain([0x1000, 0x1010, 0x1000, 0x1020, 0x1000])),
            None
        );
    }

    #[test]
    fn a_path_ends_at_the_third_page_and_has_a_limit() {
        let pcs = [0x1000, 0x5000, 0x1004, 0x5004, 0x7000, 0x1000];
        assert_eq!(recorded(pcs).unwrap(), [0x1000, 0x5000, 0x1004, 0x5004]);
        // The instruction may go on in the third.
        let pcs = [0x1000, 0x5000, 0x1004, 0x5ffe, 0x1000];
        assert_eq!(recorded(pcs).unwrap(), [0x1000, 0x5000, 0x1004]);
        assert_eq!(recorded((0..600).map(|n| 0x1000 + 4 * n)).unwrap().len(), MAX_STRAIGHT);
    }

    #[test]
    fn repeated_instructions_and_inner_loops() {
        let pcs = [0x1000, 0x1002, 0x1002, 0x1002, 0x1004, 0x1000, 0x1002, 0x1004, 0x1000];
        assert_eq!(recorded(pcs).unwrap(), [0x1000, 0x1002, 0x1004, 0x1000]);
        let inner = std::iter::once(0x1000).chain([0x1010, 0x1014].into_iter().cycle().take(100));
        assert_eq!(recorded(inner), None);
    }

    #[test]
    fn recording_stops_when_there_is_no_time() {
        let mut recorder = Recorder::new();
        assert!(recorder.sampled());
        for n in 0..MAX_BUDGET as u64 {
            recorder.start(key(0x1000), 0);
            recorder.step(key(0x1000 + n));
        }
        recorder.budget -= STEPS_PER_SAMPLE;
        assert!(!recorder.sampled());
        assert!(recorder.sampled());
    }

    #[test]
    fn short_paths_are_repeated() {
        let path = [0x1000, 0x1004, 0x1000];
        assert_eq!((rounds(&path), rounds(&[0x1000, 0x1004])), (4, 1));
        assert_eq!(repeated(&path, 2), [0x1000, 0x1004, 0x1000, 0x1004, 0x1000]);
        let long: Vec<u64> = (0..50).chain([0]).collect();
        assert_eq!(rounds(&long), 1);
    }

    #[test]
    fn spans_hold_all_instructions() {
        assert_eq!(spans(&[0x1100, 0x1180, 0x1020], None), [(0x20, 0x190), (0, 0)]);
        let path = [0x5100, 0x1ff8, 0x5000];
        assert_eq!(spans(&path, Some(0x1000)), [(0, 0x110), (0xff8, 0x1000)]);
        assert_eq!(spans(&[0x1ff8, 0x2010], Some(0x2000)), [(0xff8, 0x1000), (0, 0x20)]);
        let (from, to) = spans(&[0x1ff8, 0x2010], Some(0))[1];
        assert!(from >= to, "nothing is there");
    }
}
