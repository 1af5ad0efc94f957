//! A linker for code of three bitnesses, around iced-x86's `CodeAssembler`.
//!
//! The problem: an assembler object knows one bitness and its own labels, but real-mode code names protected-mode entries,
//! tables name handlers, and every mode names strings. The strategy: all labels are strings in one symbol table. The whole
//! image is assembled again and again, each time with the addresses found the time before, until no address changes.
//! Branches start out long and only get shorter, so that this ends.
//!
//! An image is at most 64 KiB, and 16-bit code counts its offsets from the image's first byte: the image is one real-mode
//! segment. The embedded ROM and the bare-metal test programs are made with this.
//!
//! Invariant: the code that emits a section does the same in every pass, but for the addresses it is told.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::{Deref, DerefMut, Range};

use iced_x86::code_asm::{CodeAssembler, CodeLabel};
use iced_x86::{BlockEncoderOptions, IcedError};

/// Whatever can go wrong while assembling.
pub type Error = Box<dyn std::error::Error>;
/// Result of emitting code.
pub type R = Result<(), IcedError>;

/// Addresses and names, sorted by address.
pub type SymbolList = Vec<(u64, String)>;

type Section<'a> = (u32, Box<dyn Fn(&mut Code, &Symbols) -> R + 'a>);
type Appended = (u32, Box<dyn FnOnce(&mut Code, &Symbols) -> R>);

const MAX_PASSES: usize = 30;

/// Addresses known from the previous pass, and the strings asked for in this one.
pub struct Symbols {
    base: u64,
    known: BTreeMap<String, u64>,
    texts: RefCell<BTreeSet<String>>,
    missing: RefCell<BTreeSet<String>>,
}

impl Symbols {
    /// What a name counts as that has no address yet: far from everything, so that branches start out long.
    fn unknown(&self) -> u64 {
        self.base + 0x8000
    }

    /// Linear address of a label, as branch target and 64-bit immediate.
    pub fn at(&self, name: &str) -> u64 {
        self.known.get(name).copied().unwrap_or_else(|| {
            self.missing.borrow_mut().insert(name.to_owned());
            self.unknown()
        })
    }

    /// Linear address of a label as 32-bit immediate.
    pub fn imm(&self, name: &str) -> u32 {
        self.at(name) as u32
    }

    /// Offset of a label in the image's real-mode segment.
    pub fn off(&self, name: &str) -> u32 {
        (self.at(name) - self.base) as u32 & 0xFFFF
    }

    /// Branch target for code of the given bitness.
    pub fn to(&self, bits: u32, name: &str) -> u64 {
        if bits == 16 { self.off(name).into() } else { self.at(name) }
    }

    /// Address of a zero-terminated string, which is placed behind the code.
    pub fn text(&self, text: &str) -> u32 {
        self.texts.borrow_mut().insert(text.to_owned());
        self.known.get(&text_symbol(text)).copied().unwrap_or(self.unknown()) as u32
    }
}

fn text_symbol(text: &str) -> String {
    format!("text {text:?}")
}

/// One section's assembler.
pub struct Code {
    asm: CodeAssembler,
    bits: u32,
    labels: Vec<(String, CodeLabel)>,
    /// Distinguishes the made-up labels of all sections of one pass.
    section: usize,
    made_up: usize,
    appended: Vec<Appended>,
    /// Instructions written as bytes, and instructions not to be listed: by index.
    raw: BTreeSet<usize>,
    unlisted: Vec<Range<usize>>,
}

impl Code {
    /// 16, 32 or 64.
    pub fn bits(&self) -> u32 {
        self.bits
    }

    /// Defines a label here.
    pub fn label(&mut self, name: &str) -> R {
        let mut label = self.asm.create_label();
        self.asm.set_label(&mut label)?;
        // An instruction without bytes, so that several labels may name one place.
        self.asm.zero_bytes()?;
        self.labels.push((name.to_owned(), label));
        Ok(())
    }

    /// A label name that nobody else uses; the same in every pass.
    pub fn fresh(&mut self) -> String {
        self.made_up += 1;
        format!("local {}.{}", self.section, self.made_up)
    }

    /// Defines a label followed by bytes.
    pub fn data(&mut self, name: &str, bytes: &[u8]) -> R {
        self.label(name)?;
        self.asm.db(bytes)
    }

    /// One instruction as bytes: a form that the assembler does not choose or does not know. At most 16 bytes.
    pub fn raw(&mut self, bytes: &[u8]) -> R {
        self.raw.insert(self.asm.instructions().len());
        self.asm.db(bytes)
    }

    /// Emits instructions that [`Linked::instructions`] does not list, because the program never completes them.
    pub fn unlisted(&mut self, emit: impl FnOnce(&mut Code) -> R) -> R {
        let start = self.asm.instructions().len();
        emit(self)?;
        self.unlisted.push(start..self.asm.instructions().len());
        Ok(())
    }

    /// Appends a section of its own bitness behind those there are.
    pub fn elsewhere(&mut self, bits: u32, emit: impl FnOnce(&mut Code, &Symbols) -> R + 'static) {
        self.appended.push((bits, Box::new(emit)));
    }
}

impl Deref for Code {
    type Target = CodeAssembler;
    fn deref(&self) -> &CodeAssembler {
        &self.asm
    }
}

impl DerefMut for Code {
    fn deref_mut(&mut self) -> &mut CodeAssembler {
        &mut self.asm
    }
}

/// Where an instruction lies in an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Offset of its first byte.
    pub offset: usize,
    /// Bitness of its section.
    pub bits: u32,
}

/// What comes out.
#[derive(Clone, Debug)]
pub struct Linked {
    /// The image.
    pub bytes: Vec<u8>,
    /// Where the labels are.
    pub symbols: SymbolList,
    /// All instructions but those emitted with [`Code::unlisted`]; data is not among them.
    pub instructions: Vec<Placed>,
}

/// What one pass finds.
#[derive(Default)]
struct Pass {
    bytes: Vec<u8>,
    found: BTreeMap<String, u64>,
    instructions: Vec<Placed>,
    sections: usize,
}

/// All sections of an image.
pub struct Builder<'a> {
    base: u64,
    size: usize,
    sections: Vec<Section<'a>>,
    reset: Option<Section<'a>>,
}

impl<'a> Builder<'a> {
    /// An image of at most `size` bytes (at most 64 KiB) whose first byte has linear address `base`.
    pub fn new(base: u64, size: usize) -> Self {
        Self { base, size, sections: Vec::new(), reset: None }
    }

    /// Appends a section of 16-, 32- or 64-bit code.
    pub fn section(&mut self, bits: u32, emit: impl Fn(&mut Code, &Symbols) -> R + 'a) {
        self.sections.push((bits, Box::new(emit)));
    }

    /// Makes the image a ROM of the full size, with this 16-bit code at the reset vector, 16 bytes before the end.
    pub fn reset_vector(&mut self, emit: impl Fn(&mut Code, &Symbols) -> R + 'a) {
        self.reset = Some((16, Box::new(emit)));
    }

    /// Assembles everything.
    pub fn finish(self) -> Result<Linked, Error> {
        let mut symbols = Symbols {
            base: self.base,
            known: BTreeMap::new(),
            texts: RefCell::default(),
            missing: RefCell::default(),
        };
        for _ in 0..MAX_PASSES {
            symbols.missing.borrow_mut().clear();
            let pass = self.pass(&symbols)?;
            if pass.found == symbols.known {
                if let Some(name) = symbols.missing.borrow().first() {
                    return Err(format!("undefined symbol {name:?}").into());
                }
                let mut listed: SymbolList =
                    pass.found.into_iter().map(|(name, addr)| (addr, name)).collect();
                listed.sort();
                return Ok(Linked { bytes: pass.bytes, symbols: listed, instructions: pass.instructions });
            }
            symbols.known = pass.found;
        }
        Err("the symbol table does not settle".into())
    }

    fn pass(&self, symbols: &Symbols) -> Result<Pass, Error> {
        let mut pass = Pass::default();
        let mut appended: VecDeque<Appended> = VecDeque::new();
        for (bits, emit) in &self.sections {
            appended.extend(self.assemble(&mut pass, *bits, emit, symbols)?);
        }
        while let Some((bits, emit)) = appended.pop_front() {
            appended.extend(self.assemble(&mut pass, bits, emit, symbols)?);
        }
        for text in symbols.texts.borrow().iter() {
            pass.found.insert(text_symbol(text), self.base + pass.bytes.len() as u64);
            pass.bytes.extend(text.as_bytes());
            pass.bytes.push(0);
        }
        let room = if self.reset.is_some() { self.size - 16 } else { self.size };
        if pass.bytes.len() > room {
            return Err(format!("the image is full: {} bytes of {room}", pass.bytes.len()).into());
        }
        if let Some((bits, emit)) = &self.reset {
            pass.bytes.resize(room, 0xFF);
            self.assemble(&mut pass, *bits, emit, symbols)?;
            if pass.bytes.len() > self.size {
                return Err("the reset vector has room for 16 bytes".into());
            }
            pass.bytes.resize(self.size, 0xFF);
        }
        Ok(pass)
    }

    /// Assembles one section behind what the pass has; returns the sections that it wants appended.
    fn assemble(
        &self,
        pass: &mut Pass,
        bits: u32,
        emit: impl FnOnce(&mut Code, &Symbols) -> R,
        symbols: &Symbols,
    ) -> Result<Vec<Appended>, Error> {
        let mut code = Code {
            asm: CodeAssembler::new(bits)?,
            bits,
            labels: Vec::new(),
            section: pass.sections,
            made_up: 0,
            appended: Vec::new(),
            raw: BTreeSet::new(),
            unlisted: Vec::new(),
        };
        pass.sections += 1;
        emit(&mut code, symbols)?;
        let start = pass.bytes.len();
        // Real-mode code counts from its segment's base.
        let ip_base = if bits == 16 { self.base } else { 0 };
        let result = code.asm.assemble_options(
            self.base + start as u64 - ip_base,
            BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS,
        )?;
        for (name, label) in &code.labels {
            if pass.found.insert(name.clone(), ip_base + result.label_ip(label)?).is_some() {
                return Err(format!("symbol {name:?} is defined twice").into());
            }
        }
        let instructions = code.asm.instructions().iter().zip(&result.inner.new_instruction_offsets);
        for (index, (instruction, &offset)) in instructions.enumerate() {
            let data = instruction.code() == iced_x86::Code::DeclareByte && !code.raw.contains(&index);
            let hidden = code.unlisted.iter().any(|range| range.contains(&index));
            // The offset of an instruction that became several is unknown.
            let placed = offset != u32::MAX && instruction.code() != iced_x86::Code::Zero_bytes;
            if placed && !data && !hidden {
                pass.instructions.push(Placed { offset: start + offset as usize, bits });
            }
        }
        pass.bytes.extend(result.inner.code_buffer);
        Ok(code.appended)
    }
}

#[cfg(test)]
mod tests {
    use iced_x86::code_asm::*;

    use super::*;

    #[test]
    fn links_across_bitnesses() {
        let mut builder = Builder::new(0x1_0000, 0x1000);
        builder.section(16, |c, s| {
            c.label("start")?;
            c.mov(eax, s.imm("data"))?;
            c.jmp(s.to(16, "next"))?;
            c.elsewhere(64, |c, s| {
                c.label("long")?;
                c.jmp(s.at("start"))?;
                c.unlisted(|c| c.ud2())
            });
            c.label("next")?;
            c.raw(&[0xF0, 0x90])?;
            c.data("data", &[1, 2, 3])
        });
        let linked = builder.finish().unwrap();
        // mov eax, 0x1000A; jmp +0; lock nop; data; jmp -15; ud2
        let wanted = [0x66, 0xB8, 0x0A, 0, 1, 0, 0xEB, 0, 0xF0, 0x90, 1, 2, 3, 0xEB, 0xF1, 0x0F, 0x0B];
        assert_eq!(linked.bytes, wanted);
        let at: Vec<_> = linked.instructions.iter().map(|placed| (placed.offset, placed.bits)).collect();
        assert_eq!(at, [(0, 16), (6, 16), (8, 16), (13, 64)]);
        assert!(linked.symbols.contains(&(0x1_000D, "long".into())));
    }

    #[test]
    fn names_what_is_missing_or_double() {
        let mut builder = Builder::new(0, 0x1000);
        builder.section(32, |c, s| c.jmp(s.at("nowhere")));
        assert!(builder.finish().unwrap_err().to_string().contains("nowhere"));
        let mut builder = Builder::new(0, 0x1000);
        builder.section(32, |c, _| c.label("twice").and_then(|()| c.label("twice")));
        assert!(builder.finish().unwrap_err().to_string().contains("defined twice"));
        let mut builder = Builder::new(0, 2);
        builder.section(32, |c, _| c.mov(eax, 1));
        assert!(builder.finish().unwrap_err().to_string().contains("full"));
    }
}
