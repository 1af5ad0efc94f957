//! Blocks whose code is known from another address.
//!
//! Problem: blocks are known by virtual address, since their code holds it as a constant wherever that is short. But each process
//! has its libraries elsewhere, so that each short-lived one has the same code translated anew, which takes longer than to run it.
//! Strategy: a block that is wanted at a second address is compiled for two more, made-up ones. The fields in which the three
//! results differ must be of kinds that the backend [knows](MovableField), and what follows for the third address from the first
//! two must be what the compiler made for it: then the block becomes a *template*, of which others are copied, at a
//! quarter of the cost.
//!
//! Invariants:
//! - A template is used for the physical address and the mode that it was made for, if the guest's bytes there are still those
//!   that it was made from. So nothing needs to be done when they change.
//! - Addresses are the upper ones of user space ([`is_far`]), real and made-up ones alike: no constant that follows from
//!   one is short enough for another instruction than at another address.
//! - Nothing in a block is decided by its address: see `moving`. Three samples would not show it.
//! - Templates have a limited number of bytes; the oldest go first.

use std::collections::{HashMap, VecDeque};

use crate::backend::{Compiled, HostBackend, MovableField, Position, Relative, Room, Spot};
use crate::guest::Translated;
use crate::ir::Exit;

/// Places for what was translated lately.
const SEEN: usize = 1 << 16;
/// What a template takes beside its vectors' elements.
const OVERHEAD: usize = size_of::<Template>() + 3 * size_of::<Key>();

/// Physical address and mode.
type Key = (u64, u64);

/// Whether a block at `pc` may be copied, and copies of it may be there: RIP-relative addresses included, an address is far from
/// what fits 32 bits, and from the end of user space.
pub(super) fn is_far(pc: u64) -> bool {
    ((1 << 33)..(1 << 47) - (1 << 33)).contains(&pc)
}

/// Two more positions of a block: one or the other differs from the first one in each bit of the page's number, both by an odd
/// number of pages.
pub(super) fn others(Position { pc, tb }: Position) -> [Position; 2] {
    // Neither is at an end of user space.
    let far = |pc: u64, upper: u64| pc & !(3 << 45) | upper << 45;
    [
        Position { pc: far(pc ^ 0x2aaa_aaaa_9000, 1), tb: tb ^ 0x5a5a_5a5b },
        Position { pc: far(pc ^ 0x1555_5555_7000, 2), tb: tb ^ 0x25a5_a5a7 },
    ]
}

/// What the compiler made of a block for one position.
pub(super) struct Sample {
    position: Position,
    exits: Vec<Exit>,
    ungrouped: Vec<u64>,
    hot: Vec<u8>,
    cold: Vec<u8>,
    relatives: Vec<Relative>,
    linkable: Vec<(Spot, u16)>,
    body: u32,
    host_insns: u32,
    points: usize,
    tables: Vec<u8>,
}

impl Sample {
    /// Of what was just compiled; `tables` are its side tables.
    pub fn new(position: Position, compiled: &Compiled, exits: &[Exit], tables: &[u8]) -> Sample {
        Sample {
            position,
            exits: exits.to_vec(),
            ungrouped: compiled.ungrouped.clone(),
            hot: compiled.hot.clone(),
            cold: compiled.cold.clone(),
            relatives: compiled.relatives.clone(),
            linkable: compiled.linkable.clone(),
            body: compiled.body,
            host_insns: compiled.host_insns,
            points: compiled.points.len(),
            tables: tables.to_vec(),
        }
    }

    /// Whether all is alike that does not depend on the position.
    fn has_shape_of(&self, other: &Sample) -> bool {
        let shape = |s: &Sample| (s.body, s.host_insns, s.points, s.hot.len(), s.cold.len(), s.exits.len());
        shape(self) == shape(other)
            && (&self.tables, &self.relatives, &self.linkable)
                == (&other.tables, &other.relatives, &other.linkable)
            && self.ungrouped.len() == other.ungrouped.len()
    }

    /// Whether the compiler made the same for the same position as `compiled` and `exits` are.
    fn is(&self, compiled: &Compiled, exits: &[Exit]) -> bool {
        let same = |ours: &[u8], theirs: &[u8], part: fn(u32) -> Spot| {
            ours.len() == theirs.len()
                && (0..ours.len())
                    .all(|at| ours[at] == theirs[at] || is_relative(&self.relatives, part(at as u32)))
        };
        same(&self.hot, &compiled.hot, Spot::Hot)
            && same(&self.cold, &compiled.cold, Spot::Cold)
            && (&self.exits[..], &self.ungrouped) == (exits, &compiled.ungrouped)
    }
}

/// Whether a byte is in a field that depends on where the parts are.
fn is_relative(relatives: &[Relative], spot: Spot) -> bool {
    relatives.iter().any(|relative| match (relative.at, spot) {
        (Spot::Hot(at), Spot::Hot(byte)) | (Spot::Cold(at), Spot::Cold(byte)) => (at..at + 4).contains(&byte),
        _ => false,
    })
}

/// A block that can be copied. Each copy is compared with what the compiler makes, in builds with debug assertions.
pub(super) struct Template {
    sample: Sample,
    /// Fields to be changed, and their kinds.
    fields: Vec<(Spot, u8)>,
    /// Exits whose addresses move with the block.
    moving: Vec<bool>,
    /// The guest's bytes.
    guest: Vec<u8>,
    /// How long the block is.
    pub translated: Translated,
}

impl Template {
    /// From three samples of the same block, of which two differ from the first as [`others`] do; `None` if what the compiler makes
    /// does not follow from the block's position.
    pub fn new<B: HostBackend>(
        [first, second, third]: [Sample; 3],
        guest: &[u8],
        translated: Translated,
    ) -> Option<Template> {
        if [&second, &third].iter().any(|other| !first.has_shape_of(other)) {
            return None;
        }
        let (from, to) = (first.position, second.position);
        let distance = to.pc.wrapping_sub(from.pc);
        let mut fields = Vec::new();
        for (part, ours, theirs) in [
            (Spot::Hot as fn(u32) -> Spot, &first.hot, &second.hot),
            (Spot::Cold as fn(u32) -> Spot, &first.cold, &second.cold),
        ] {
            // Behind the last field.
            let mut end = 0;
            let mut at = 0;
            while let Some(next) = (at..ours.len()).find(|at| ours[*at] != theirs[*at]) {
                at = next + 1;
                if is_relative(&first.relatives, part(next as u32)) {
                    continue;
                }
                let (kind, start) = B::MOVABLE.iter().enumerate().find_map(|(kind, field)| {
                    let start = next.checked_sub(field.same).filter(|start| *start >= end)?;
                    let moved = (field.moved)(value(ours, start, field)?, from, to)?;
                    (moved == value(theirs, start, field)?).then_some((kind as u8, start))
                })?;
                fields.push((part(start as u32), kind));
                end = start + B::MOVABLE[kind as usize].bytes;
                at = end;
            }
        }
        let mut moving = Vec::new();
        for (ours, theirs) in first.exits.iter().zip(&second.exits) {
            moving.push(ours.pc != theirs.pc);
            let moved =
                Exit { pc: ours.pc.wrapping_add(if ours.pc == theirs.pc { 0 } else { distance }), ..*ours };
            if moved != *theirs {
                return None;
            }
        }
        let template = Template { sample: first, fields, moving, guest: guest.to_vec(), translated };
        // The one that nothing was learnt from.
        let (mut compiled, mut exits) = (Compiled::default(), Vec::new());
        template.copy::<B>(third.position, &mut compiled, &mut exits)?;
        third.is(&compiled, &exits).then_some(template)
    }

    /// The guest's bytes that it was made from.
    pub fn guest(&self) -> &[u8] {
        &self.guest
    }

    /// Its side tables, and how many points are in them.
    pub fn tables(&self) -> (usize, &[u8]) {
        (self.sample.points, &self.sample.tables)
    }

    /// Makes what the compiler would make for another position, in `room`; `None` if that is not known.
    pub fn make<B: HostBackend>(
        &self,
        to: Position,
        room: Room,
        out: &mut Compiled,
        exits: &mut Vec<Exit>,
    ) -> Option<()> {
        self.copy::<B>(to, out, exits)?;
        out.place::<B>(room);
        Some(())
    }

    /// The same, without a place.
    fn copy<B: HostBackend>(&self, to: Position, out: &mut Compiled, exits: &mut Vec<Exit>) -> Option<()> {
        let sample = &self.sample;
        let from = sample.position;
        let distance = to.pc.wrapping_sub(from.pc);
        out.clear();
        out.hot.extend_from_slice(&sample.hot);
        out.cold.extend_from_slice(&sample.cold);
        out.relatives.extend_from_slice(&sample.relatives);
        out.linkable.extend_from_slice(&sample.linkable);
        out.ungrouped.extend(sample.ungrouped.iter().map(|pc| pc.wrapping_add(distance)));
        (out.body, out.host_insns) = (sample.body, sample.host_insns);
        for &(spot, kind) in &self.fields {
            let field = &B::MOVABLE[kind as usize];
            let (code, at) = match spot {
                Spot::Hot(at) => (&mut out.hot, at as usize),
                Spot::Cold(at) => (&mut out.cold, at as usize),
            };
            let moved = (field.moved)(value(code, at, field)?, from, to)?;
            code[at..at + field.bytes].copy_from_slice(&moved.to_le_bytes()[..field.bytes]);
        }
        exits.clear();
        exits.extend(sample.exits.iter().zip(&self.moving).map(|(exit, moving)| Exit {
            pc: exit.pc.wrapping_add(if *moving { distance } else { 0 }),
            ..*exit
        }));
        Some(())
    }

    fn bytes(&self) -> usize {
        let s = &self.sample;
        OVERHEAD
            + [s.hot.len(), s.cold.len(), s.tables.len(), self.guest.len(), self.moving.len()]
                .iter()
                .sum::<usize>()
            + size_of_val(&s.ungrouped[..])
            + size_of_val(&s.relatives[..])
            + size_of_val(&s.linkable[..])
            + size_of_val(&s.exits[..])
            + size_of_val(&self.fields[..])
    }
}

/// The value of a field, if it is inside of the code.
fn value(code: &[u8], at: usize, field: &MovableField) -> Option<u64> {
    let bytes = code.get(at..at + field.bytes)?;
    let mut v = [0; 8];
    v[..bytes.len()].copy_from_slice(bytes);
    Some(u64::from_le_bytes(v))
}

/// The templates, and what may become one.
pub(super) struct Templates {
    /// Hashes of blocks that were translated lately, of their bytes too, and at which address.
    seen: Box<[(u64, u64)]>,
    /// Each with its number; `None` for blocks that cannot be copied.
    known: HashMap<Key, (u64, Option<Box<Template>>)>,
    /// Keys, numbers and bytes, the oldest first. What is forgotten stays in here, and counts, until it is its turn.
    order: VecDeque<(Key, u64, usize)>,
    /// The number of the next one.
    next: u64,
    bytes: usize,
    limit: usize,
}

impl Templates {
    /// No templates yet, and so many bytes of them at most.
    pub fn new(limit: usize) -> Templates {
        Templates {
            seen: vec![(0, 0); SEEN].into(),
            known: HashMap::new(),
            order: VecDeque::new(),
            next: 0,
            bytes: 0,
            limit,
        }
    }

    /// What is known of the block at a physical address.
    pub fn get(&self, key: Key) -> Option<&Template> {
        self.known.get(&key)?.1.as_deref()
    }

    /// Notes that a block of these bytes was translated at `pc`. Whether that is worth being made a template of: it was, lately,
    /// at another address, and nothing is known of it. Where other bytes were at each address, that would cost more than it saves.
    pub fn note(&mut self, key: Key, pc: u64, guest: &[u8]) -> bool {
        if self.known.contains_key(&key) {
            return false;
        }
        let mix = |hash: u64, word: u64| (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        let hash = guest.chunks(8).fold(mix(mix(0, key.0), key.1), |hash, bytes| {
            let mut word = [0; 8];
            word[..bytes.len()].copy_from_slice(bytes);
            mix(hash, u64::from_le_bytes(word))
        });
        let before = std::mem::replace(&mut self.seen[(hash >> 40) as usize % SEEN], (hash, pc));
        before.0 == hash && before.1 != pc
    }

    /// Keeps what was found out of a block.
    pub fn insert(&mut self, key: Key, template: Option<Template>) {
        let bytes = template.as_ref().map_or(OVERHEAD, Template::bytes);
        let number = self.next;
        self.next += 1;
        self.known.insert(key, (number, template.map(Box::new)));
        self.order.push_back((key, number, bytes));
        self.bytes += bytes;
        while self.bytes > self.limit
            && let Some((oldest, number, bytes)) = self.order.pop_front()
        {
            if self.known.get(&oldest).is_some_and(|known| known.0 == number) {
                self.known.remove(&oldest);
            }
            self.bytes -= bytes;
        }
    }

    /// Forgets what is known of a block, whose bytes have changed.
    pub fn forget(&mut self, key: Key) {
        self.known.remove(&key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::x86_64::X86_64;
    use crate::ir::GlobalSet;
    use crate::memory::PAGE_SIZE;

    /// A block of one address, with an exit behind it.
    fn sample(position: Position, address: u64) -> Sample {
        let mut compiled = Compiled::default();
        compiled.hot.extend_from_slice(&[0x48, 0xb8]);
        compiled.hot.extend_from_slice(&address.to_le_bytes());
        let exit =
            Exit { pc: position.pc + 10, indirect: false, poll: false, chain: true, dead: GlobalSet::NONE };
        Sample::new(position, &compiled, &[exit], &[])
    }

    #[test]
    fn what_the_third_does_not_confirm_is_no_template() {
        let first = Position { pc: 0x7f12_3456_7012, tb: 5 };
        let all = [first, others(first)[0], others(first)[1]];
        let translated = Translated { bytes: 10, insns: 1 };
        let of = |addresses: [u64; 3]| {
            let samples = std::array::from_fn(|n| sample(all[n], addresses[n]));
            Template::new::<X86_64>(samples, &[], translated)
        };
        let moving = all.map(|position| position.pc + 0x1234);
        let template = of(moving).expect("it moves");
        let to = Position { pc: 0x5555_5555_5012, tb: 9 };
        let (mut copy, mut exits) = (Compiled::default(), Vec::new());
        template.copy::<X86_64>(to, &mut copy, &mut exits).expect("addresses move anywhere");
        assert_eq!(copy.hot[2..], (to.pc + 0x1234).to_le_bytes());
        assert_eq!(exits[0].pc, to.pc + 10);
        assert!(of([77; 3]).is_some(), "it stays");
        assert!(of([moving[0], moving[0], moving[2]]).is_none(), "it moved once");
        assert!(of([moving[0], moving[1], moving[1]]).is_none());
        assert!(of([moving[0], moving[1], moving[2] ^ 1 << 30]).is_none(), "it went elsewhere");
    }

    #[test]
    fn the_other_positions_differ_in_every_bit_that_may_differ() {
        let pages = (1u64 << 47) - PAGE_SIZE;
        for pc in [0x5555_5540_0123, 0x7fff_1234_5678, 0x2000_0000_0fff, 0x0140_0000_0000, 0x4abc_de60_4000] {
            let first = Position { pc, tb: 5 };
            let others = others(first);
            for other in others {
                let distance = other.pc.wrapping_sub(pc);
                assert!(is_far(other.pc) && distance.is_multiple_of(PAGE_SIZE), "{pc:x}");
                assert_eq!(distance / PAGE_SIZE % 2, 1, "{pc:x}");
                assert_ne!(other.tb as u8, first.tb as u8);
            }
            assert_eq!(others[0].pc ^ pc | others[1].pc ^ pc, pages, "{pc:x}");
        }
    }

    #[test]
    fn what_is_forgotten_and_learnt_again_is_bounded_and_stays() {
        const PLACES: usize = 8;
        let mut t = Templates::new(PLACES * OVERHEAD);
        let (mine, other) = ((1, 0), (2, 0));
        t.insert(other, None);
        for n in 0..10 * PLACES {
            t.insert(mine, None);
            assert!(t.known.contains_key(&mine), "{n}");
            assert_eq!(t.known.contains_key(&other), n + 1 < PLACES, "{n}");
            assert!(t.order.len() <= PLACES && t.bytes <= t.limit);
            t.forget(mine);
            assert!(!t.known.contains_key(&mine));
        }
        // Of those that were forgotten, the oldest goes.
        t.insert(mine, None);
        t.insert(other, None);
        assert!(t.known.contains_key(&mine) && t.known.contains_key(&other));
    }

    #[test]
    fn the_same_bytes_at_another_address_are_worth_a_template() {
        let mut t = Templates::new(100 * OVERHEAD);
        let key = (3, 0);
        assert!(!t.note(key, 7, b"these bytes"));
        assert!(!t.note(key, 7, b"these bytes"), "the same address");
        assert!(!t.note(key, 8, b"other bytes"));
        assert!(!t.note((4, 0), 8, b"these bytes"), "another block");
        assert!(t.note(key, 8, b"these bytes"));
        t.insert(key, None);
        assert!(!t.note(key, 9, b"these bytes"), "it is known");
    }
}
