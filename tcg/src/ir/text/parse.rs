//! The parser of the text form; see the [parent module](super).

use super::*;

/// Why a text is not a block.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("line {line}: {what}")]
pub struct ParseError {
    /// Line, from 1.
    pub line: usize,
    /// What is wrong there.
    pub what: String,
}

/// Reads a block. Types are not checked: that is [`verify`](crate::ir::verify)'s.
pub fn parse(text: &str, guest: &GuestInfo) -> Result<Block, ParseError> {
    let mut parser = Parser { guest, names: Vec::new(), block: Block::default(), exit_uses: Vec::new() };
    for (i, line) in text.lines().enumerate() {
        let line_text = line.split(';').next().unwrap_or("").trim();
        if !line_text.is_empty() {
            parser.line(line_text, i + 1).map_err(|what| ParseError { line: i + 1, what })?;
        }
    }
    for (line, exit) in parser.exit_uses {
        if exit.0 as usize >= parser.block.exits.len() {
            return Err(ParseError { line, what: format!("exit{} is not listed", exit.0) });
        }
    }
    Ok(parser.block)
}

type Parsed<T> = Result<T, String>;

struct Parser<'a> {
    guest: &'a GuestInfo,
    /// Names of values with their indices.
    names: Vec<(String, Value)>,
    block: Block,
    /// Lines that refer to exits, to be checked when all are known.
    exit_uses: Vec<(usize, ExitId)>,
}

/// The operands of one line: words and the punctuation between them.
struct Operands<'a> {
    tokens: Vec<&'a str>,
    at: usize,
}

/// Splits into names, numbers and punctuation; a minus sign belongs to the number.
fn tokens(mut text: &str) -> Vec<&str> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | '>');
    let mut tokens = Vec::new();
    loop {
        text = text.trim_start();
        let Some(first) = text.chars().next() else { return tokens };
        let end = match is_word(first) {
            true => text.find(|c: char| !is_word(c)).unwrap_or(text.len()),
            false if text.starts_with("<<") => 2,
            false => first.len_utf8(),
        };
        tokens.push(&text[..end]);
        text = &text[end..];
    }
}

impl<'a> Operands<'a> {
    fn next(&mut self) -> Parsed<&'a str> {
        let token = self.tokens.get(self.at).ok_or("the line ends too early")?;
        self.at += 1;
        Ok(token)
    }

    /// Takes the token if it is there.
    fn take(&mut self, token: &str) -> bool {
        let there = self.tokens.get(self.at) == Some(&token);
        self.at += there as usize;
        there
    }

    fn expect(&mut self, token: &str) -> Parsed<()> {
        match self.next()? {
            found if found == token => Ok(()),
            found => Err(format!("expected `{token}`, found `{found}`")),
        }
    }

    fn comma(&mut self) -> Parsed<()> {
        self.expect(",")
    }

    /// A decimal or hexadecimal number.
    fn number<T: TryFrom<u64>>(&mut self) -> Parsed<T> {
        let token = self.next()?;
        let n = match token.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16),
            None => token.parse(),
        };
        let out_of_range = || format!("`{token}` is no number in range");
        n.ok().and_then(|n| T::try_from(n).ok()).ok_or_else(out_of_range)
    }
}

/// Splits off what follows the last dot.
fn last_part(name: &str) -> (&str, &str) {
    name.rsplit_once('.').unwrap_or((name, ""))
}

impl Parser<'_> {
    fn line(&mut self, text: &str, line: usize) -> Parsed<()> {
        if let Some((exit, rest)) = text.split_once(':')
            && exit.starts_with("exit")
        {
            return self.exit(exit, rest);
        }
        let (name, rest) = match text.split_once('=') {
            Some((name, rest)) => (Some(name.trim()), rest),
            None => (None, text),
        };
        let mut operands = Operands { tokens: tokens(rest), at: 0 };
        let mnemonic = operands.next()?;
        let inst = self.inst(mnemonic, &mut operands, line)?;
        if let Some(extra) = operands.tokens.get(operands.at) {
            return Err(format!("`{extra}` is too much"));
        }
        let v = Value(self.block.insts.len() as u32);
        self.block.insts.push(inst);
        if let Some(name) = name {
            self.names.push((name.into(), v));
        }
        Ok(())
    }

    /// An exit's line: number, address, attributes.
    fn exit(&mut self, name: &str, rest: &str) -> Parsed<()> {
        if name != format!("exit{}", self.block.exits.len()) {
            return Err(format!("`{name}` is out of order"));
        }
        let mut o = Operands { tokens: tokens(rest), at: 0 };
        let pc = o.number()?;
        let mut exit = Exit { pc, indirect: false, poll: false, chain: false, dead: GlobalSet::NONE };
        while o.at < o.tokens.len() {
            match o.next()? {
                "indirect" => exit.indirect = true,
                "poll" => exit.poll = true,
                "chain" => exit.chain = true,
                "dead" => {
                    o.expect("{")?;
                    while !o.take("}") {
                        exit.dead.insert(self.global(&mut o)?);
                        o.take(",");
                    }
                }
                other => return Err(format!("`{other}` is no attribute of an exit")),
            }
        }
        self.block.exits.push(exit);
        Ok(())
    }

    fn global(&self, o: &mut Operands<'_>) -> Parsed<GlobalId> {
        let name = o.next()?;
        match self.guest.globals.iter().position(|desc| desc.name == name) {
            Some(i) => Ok(GlobalId(i as u8)),
            None => Err(format!("`{name}` is no global")),
        }
    }

    fn value(&self, o: &mut Operands<'_>) -> Parsed<Value> {
        let name = o.next()?;
        match self.names.iter().rev().find(|(n, _)| n == name) {
            Some((_, v)) => Ok(*v),
            None => Err(format!("`{name}` is not defined above")),
        }
    }

    /// A comma and a value.
    fn next_value(&self, o: &mut Operands<'_>) -> Parsed<Value> {
        o.comma()?;
        self.value(o)
    }

    fn exit_ref(&mut self, o: &mut Operands<'_>, line: usize) -> Parsed<ExitId> {
        let name = o.next()?;
        let id = name.strip_prefix("exit").and_then(|n| n.parse().ok()).map(ExitId);
        let id = id.ok_or_else(|| format!("`{name}` is no exit"))?;
        self.exit_uses.push((line, id));
        Ok(id)
    }

    /// `[v1] mmu0 for_write`.
    fn mem(&self, o: &mut Operands<'_>) -> Parsed<(Value, MemFlags)> {
        o.expect("[")?;
        let addr = self.value(o)?;
        o.expect("]")?;
        let name = o.next()?;
        let mmu = name.strip_prefix("mmu").and_then(|n| n.parse().ok());
        let mmu = mmu.ok_or_else(|| format!("expected `mmu` and a number, found `{name}`"))?;
        Ok((addr, MemFlags { mmu, for_write: o.take("for_write") }))
    }

    /// One or two vector operands and an immediate.
    fn vec_operands(&self, o: &mut Operands<'_>, operands: u32, has_imm: bool) -> Parsed<(Value, Value, u8)> {
        let a = self.value(o)?;
        let b = if operands > 1 { self.next_value(o)? } else { a };
        let imm = if has_imm {
            o.comma()?;
            o.number()?
        } else {
            0
        };
        Ok((a, b, imm))
    }

    fn inst(&mut self, mnemonic: &str, o: &mut Operands<'_>, line: usize) -> Parsed<Inst> {
        let unknown = || format!("`{mnemonic}` is no instruction");
        let (first, parts) = mnemonic.split_once('.').unwrap_or((mnemonic, ""));
        let width = |text: &str| Width::from_name(text).ok_or_else(unknown);
        let cond = |text: &str| Cond::from_name(text).ok_or_else(unknown);
        let len = |text: &str| VecLen::from_name(text).ok_or_else(unknown);
        // A width and how the result is extended.
        let extended = || -> Parsed<(Width, Ext)> {
            let (w, ext) = parts.split_once('.').unwrap_or((parts, ""));
            Ok((width(w)?, Ext::from_name(ext).ok_or_else(unknown)?))
        };
        Ok(match first {
            "nop" => Inst::Nop,
            "insn" => Inst::InsnStart { pc: o.number()? },
            "const" => Inst::Const(o.number()?),
            "vzero" => Inst::VecZero,
            "get" => Inst::Get(self.global(o)?),
            "set" => Inst::Set(self.global(o)?, self.next_value(o)?),
            "zeroupper" => {
                let mut set = GlobalSet::of(self.global(o)?);
                while o.take(",") {
                    set.insert(self.global(o)?);
                }
                Inst::ZeroUpper(set)
            }
            "envload" => Inst::EnvLoad { width: width(parts)?, offset: o.number()? },
            "envstore" => {
                Inst::EnvStore { width: width(parts)?, offset: o.number()?, v: self.next_value(o)? }
            }
            "addc" | "subc" => {
                let (a, b, f) = (self.value(o)?, self.next_value(o)?, self.next_value(o)?);
                Inst::Carry { sub: first == "subc", w: width(parts)?, a, b, f }
            }
            "lea" => {
                o.expect("[")?;
                let base = self.value(o)?;
                o.expect("+")?;
                let index = self.value(o)?;
                o.expect("<<")?;
                let scale = o.number()?;
                o.expect("+")?;
                let disp = o.next()?;
                let disp = disp.parse().map_err(|_| format!("`{disp}` is no displacement"))?;
                o.expect("]")?;
                Inst::Lea { w: width(parts)?, base, index, scale, disp }
            }
            "extend" => {
                let (from, ext) = extended()?;
                Inst::Extend { from, ext, a: self.value(o)? }
            }
            "extract" | "insert" => {
                let a = self.value(o)?;
                let b = if first == "insert" { self.next_value(o)? } else { a };
                o.comma()?;
                let pos = o.number()?;
                o.comma()?;
                let len = o.number()?;
                match first {
                    "insert" => Inst::Insert { a, b, pos, len },
                    _ => Inst::Extract { a, pos, len },
                }
            }
            "shiftpair" => {
                let (hi, lo, count) = (self.value(o)?, self.next_value(o)?, self.next_value(o)?);
                Inst::ShiftPair { w: width(parts)?, hi, lo, count }
            }
            "flags" => {
                let (op, w) = last_part(parts);
                let op = FlagOp::from_name(op).ok_or_else(unknown)?;
                let a = self.value(o)?;
                let b = if op.reads_b() { self.next_value(o)? } else { a };
                let old = if op.reads_old() { Some(self.next_value(o)?) } else { None };
                Inst::Flags { op, w: width(w)?, a, b, old }
            }
            "pack" => Inst::Pack(self.value(o)?),
            "setcond" => Inst::SetCond { cond: cond(parts)?, f: self.value(o)? },
            "select" => {
                let (name, w) = last_part(parts);
                let (f, a, b) = (self.value(o)?, self.next_value(o)?, self.next_value(o)?);
                Inst::Select { w: width(w)?, cond: cond(name)?, f, a, b }
            }
            "load" => {
                let ((width, ext), (addr, mem)) = (extended()?, self.mem(o)?);
                Inst::Load { width, ext, addr, mem }
            }
            "store" => {
                let (addr, mem) = self.mem(o)?;
                Inst::Store { width: width(parts)?, addr, v: self.next_value(o)?, mem }
            }
            "loadv" | "storev" => {
                let size = VecSize::from_name(parts).ok_or_else(unknown)?;
                let (addr, mem) = self.mem(o)?;
                match first {
                    "loadv" => Inst::LoadVec { size, addr, mem },
                    _ => Inst::StoreVec { size, addr, v: self.next_value(o)?, mem },
                }
            }
            "loadm" | "storem" => {
                let (w, l) = last_part(parts);
                let (width, len) = (width(w)?, len(l)?);
                let (addr, mem) = self.mem(o)?;
                let v = self.next_value(o)?;
                match first {
                    "loadm" => Inst::LoadMasked { width, len, addr, mask: v, mem },
                    _ => Inst::StoreMasked { width, len, addr, v, mask: self.next_value(o)?, mem },
                }
            }
            "rmw" => {
                let (op, w) = last_part(parts);
                let op = RmwOp::from_name(op).ok_or_else(unknown)?;
                let (addr, mem) = self.mem(o)?;
                Inst::AtomicRmw { op, width: width(w)?, addr, v: self.next_value(o)?, mem }
            }
            "cas" => {
                let (addr, mem) = self.mem(o)?;
                let (expect, new) = (self.next_value(o)?, self.next_value(o)?);
                Inst::AtomicCas { width: width(parts)?, addr, expect, new, mem }
            }
            "v" => {
                let (op, l) = last_part(parts);
                let op = VecOp::from_text(op).ok_or_else(unknown)?;
                let (a, b, imm) = self.vec_operands(o, op.operands(), op.has_imm())?;
                Inst::Vec { op, len: len(l)?, a, b, imm }
            }
            "v3" => {
                let (op, l) = last_part(parts);
                let op = Vec3Op::from_text(op).ok_or_else(unknown)?;
                let (a, b, c) = (self.value(o)?, self.next_value(o)?, self.next_value(o)?);
                Inst::Vec3 { op, len: len(l)?, a, b, c }
            }
            "vins" => {
                let op = VecInsOp::from_text(parts).ok_or_else(unknown)?;
                let (a, b, imm) = self.vec_operands(o, op.operands(), op.has_imm())?;
                Inst::VecIns { op, a, b, imm }
            }
            "vtest" => {
                let (op, l) = last_part(parts);
                let op = VecTestOp::from_text(op).ok_or_else(unknown)?;
                let (a, b, imm) = self.vec_operands(o, op.operands(), op.has_imm())?;
                Inst::VecTest { op, len: len(l)?, a, b, imm }
            }
            "vfromint" => Inst::VecFromInt { w: width(parts)?, a: self.value(o)? },
            "vtoint" => Inst::VecToInt { w: width(parts)?, a: self.value(o)? },
            "call" => {
                let name = o.next()?;
                let helper = self.guest.helpers.iter().position(|desc| desc.name == name);
                let helper = helper.ok_or_else(|| format!("`{name}` is no helper"))?;
                o.expect("(")?;
                let mut args = Vec::new();
                while !o.take(")") {
                    args.push(self.value(o)?);
                    o.take(",");
                }
                if args.len() > 5 {
                    return Err("a helper takes at most five arguments".into());
                }
                Inst::Call { helper: HelperId(helper as u16), args: CallArgs::new(&args) }
            }
            "exitif" => {
                let (cond, f) = (cond(parts)?, self.value(o)?);
                o.expect("->")?;
                Inst::ExitIf { cond, f, exit: self.exit_ref(o, line)? }
            }
            "goto" => Inst::Goto(self.exit_ref(o, line)?),
            "branch" => {
                let (cond, f) = (cond(parts)?, self.value(o)?);
                o.expect("->")?;
                let taken = self.exit_ref(o, line)?;
                o.comma()?;
                Inst::Branch { cond, f, taken, fall: self.exit_ref(o, line)? }
            }
            "goto_indirect" => Inst::GotoIndirect,
            "leave" => Inst::Leave { code: o.number()? },
            _ => {
                if let Some(op) = BinOp::from_name(first) {
                    Inst::Bin { op, w: width(parts)?, a: self.value(o)?, b: self.next_value(o)? }
                } else if let Some(op) = UnOp::from_name(first) {
                    Inst::Un { op, w: width(parts)?, a: self.value(o)? }
                } else {
                    return Err(unknown());
                }
            }
        })
    }
}
