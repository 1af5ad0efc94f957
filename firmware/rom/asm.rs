//! A linker for code of three bitnesses, around iced-x86's `CodeAssembler`.
//!
//! The problem: an assembler object knows one bitness and its own labels, but real-mode code names protected-mode entries,
//! tables name handlers, and every mode names strings. The strategy: all labels are strings in one symbol table. The whole
//! ROM is assembled again and again, each time with the addresses found the time before, until no address changes.
//! Branches start out long and only get shorter, so that this ends.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::{Deref, DerefMut};

use iced_x86::code_asm::{CodeAssembler, CodeLabel};
use iced_x86::{BlockEncoderOptions, IcedError};

/// Whatever can go wrong while assembling.
pub type Error = Box<dyn std::error::Error>;
/// Result of emitting code.
pub type R = Result<(), IcedError>;

/// Addresses and names, sorted by address.
pub type SymbolList = Vec<(u64, String)>;

/// A function that emits one section.
pub type Emit = fn(&mut Code, &Symbols) -> R;

/// Used for names that have no address yet: far from everything, so that branches start out long.
const UNKNOWN: u64 = 0xF_8000;
const MAX_PASSES: usize = 20;

/// Addresses known from the previous pass, and the strings asked for in this one.
#[derive(Default)]
pub struct Symbols {
    known: BTreeMap<String, u64>,
    texts: RefCell<BTreeSet<String>>,
    missing: RefCell<BTreeSet<String>>,
}

impl Symbols {
    /// Linear address of a label, as branch target and 64-bit immediate.
    pub fn at(&self, name: &str) -> u64 {
        self.known.get(name).copied().unwrap_or_else(|| {
            self.missing.borrow_mut().insert(name.to_owned());
            UNKNOWN
        })
    }

    /// Linear address of a label as 32-bit immediate.
    pub fn imm(&self, name: &str) -> u32 {
        self.at(name) as u32
    }

    /// Offset of a label in segment 0xF000.
    pub fn off(&self, name: &str) -> u32 {
        self.imm(name) & 0xFFFF
    }

    /// Branch target for code of the given bitness.
    pub fn to(&self, bits: u32, name: &str) -> u64 {
        if bits == 16 { self.at(name) & 0xFFFF } else { self.at(name) }
    }

    /// Address of a zero-terminated string, which is placed behind the code.
    pub fn text(&self, text: &str) -> u32 {
        self.texts.borrow_mut().insert(text.to_owned());
        self.known.get(&text_symbol(text)).copied().unwrap_or(UNKNOWN) as u32
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

/// All sections of a ROM.
pub struct Builder {
    base: u64,
    size: usize,
    sections: Vec<(u32, Emit)>,
}

impl Builder {
    /// A ROM of `size` bytes (at most 64 KiB) whose first byte has linear address `base`.
    pub fn new(base: u64, size: usize) -> Self {
        Self { base, size, sections: Vec::new() }
    }

    /// Appends a section of 16-, 32- or 64-bit code.
    pub fn section(&mut self, bits: u32, emit: Emit) {
        self.sections.push((bits, emit));
    }

    /// Assembles everything; `reset` emits the 16-bit code of the reset vector, 16 bytes before the end.
    pub fn finish(self, reset: Emit) -> Result<(Vec<u8>, SymbolList), Error> {
        let mut symbols = Symbols::default();
        for _ in 0..MAX_PASSES {
            symbols.missing.borrow_mut().clear();
            let (rom, found) = self.pass(&symbols, reset)?;
            if found == symbols.known {
                if let Some(name) = symbols.missing.borrow().first() {
                    return Err(format!("undefined symbol {name:?}").into());
                }
                let mut listed: SymbolList = found.into_iter().map(|(name, addr)| (addr, name)).collect();
                listed.sort();
                return Ok((rom, listed));
            }
            symbols.known = found;
        }
        Err("the symbol table does not settle".into())
    }

    fn pass(&self, symbols: &Symbols, reset: Emit) -> Result<(Vec<u8>, BTreeMap<String, u64>), Error> {
        let mut rom = Vec::with_capacity(self.size);
        let mut found = BTreeMap::new();
        for (index, &(bits, emit)) in self.sections.iter().enumerate() {
            let ip = self.base + rom.len() as u64;
            rom.extend(self.assemble(index, bits, emit, ip, symbols, &mut found)?);
        }
        for text in symbols.texts.borrow().iter() {
            found.insert(text_symbol(text), self.base + rom.len() as u64);
            rom.extend(text.as_bytes());
            rom.push(0);
        }
        let reset_at = self.size - 16;
        if rom.len() > reset_at {
            return Err(format!("the ROM is full: {} bytes of {reset_at}", rom.len()).into());
        }
        rom.resize(reset_at, 0xFF);
        let ip = self.base + reset_at as u64;
        rom.extend(self.assemble(self.sections.len(), 16, reset, ip, symbols, &mut found)?);
        if rom.len() > self.size {
            return Err("the reset vector has room for 16 bytes".into());
        }
        rom.resize(self.size, 0xFF);
        Ok((rom, found))
    }

    fn assemble(
        &self,
        section: usize,
        bits: u32,
        emit: Emit,
        ip: u64,
        symbols: &Symbols,
        found: &mut BTreeMap<String, u64>,
    ) -> Result<Vec<u8>, Error> {
        let mut code = Code { asm: CodeAssembler::new(bits)?, bits, labels: Vec::new(), section, made_up: 0 };
        emit(&mut code, symbols)?;
        // Real-mode code counts from its segment's base.
        let ip_base = if bits == 16 { self.base } else { 0 };
        let result =
            code.asm.assemble_options(ip - ip_base, BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS)?;
        for (name, label) in &code.labels {
            if found.insert(name.clone(), ip_base + result.label_ip(label)?).is_some() {
                return Err(format!("symbol {name:?} is defined twice").into());
            }
        }
        Ok(result.inner.code_buffer)
    }
}
