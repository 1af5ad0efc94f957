//! The whole story of a mismatch.

use std::fmt::Write;

use anyhow::Result;
use iced_x86::{Decoder, DecoderOptions, Encoder, FastFormatter};
use tessera_tcg::backend::x86_64::X86_64;
use tessera_tcg::backend::{Compiled, GuestInfo, HostBackend, Room};
use tessera_tcg::guest::{BlockKey, CodeFetch, Exception, Guest, TranslateLimits};
use tessera_tcg::ir::{Builder, text};
use tessera_tcg::opt::{OptFlags, Optimizer};
use tessera_x86::guest::X86;
use tessera_x86::state::{PC, X86Env};

use crate::compare::{After, describe, describe_start};
use crate::generate::Case;
use crate::guest::Config;
use crate::layout::CODE;
use crate::rig::{Rig, Verdict};
use crate::sequence::Code64;
use crate::shrink::Small;

/// Names of the instructions' codes, for telling mismatches apart.
pub fn signature(case: &Case) -> String {
    let steps = case.sequence.steps.iter().filter(|s| !s.is_wash);
    let codes: Vec<_> = steps.flat_map(|s| s.insns.iter().map(|i| format!("{:?}", i.code()))).collect();
    codes.join(" ")
}

/// The instructions of a case.
pub fn listing(case: &Case) -> String {
    let mut encoder = Encoder::new(if case.sequence.wide { 64 } else { 32 });
    let mut code = Code64::default();
    let mut out = String::new();
    if case.sequence.place(CODE + 0x100, &mut encoder, &mut code).is_some() {
        let body = code.bytes.len() - 5;
        disassemble(&mut out, if case.sequence.wide { 64 } else { 32 }, CODE + 0x100, &code.bytes[..body]);
    }
    out
}

fn disassemble(out: &mut String, bitness: u32, ip: u64, bytes: &[u8]) {
    let mut formatter = FastFormatter::new();
    let mut decoder = Decoder::with_ip(bitness, bytes, ip, DecoderOptions::NONE);
    while decoder.can_decode() {
        let i = decoder.decode();
        let at = (i.ip() - ip) as usize;
        let raw: String = bytes[at..at + i.len()].iter().map(|b| format!("{b:02x}")).collect();
        let mut line = String::new();
        formatter.format(&i, &mut line);
        let _ = writeln!(out, "  {:x}  {raw:<24} {line}", i.ip());
    }
}

struct Bytes<'a> {
    at: u64,
    bytes: &'a [u8],
}

impl CodeFetch for Bytes<'_> {
    fn fetch(&mut self, pc: u64) -> Result<&[u8], Exception> {
        let skip = pc.wrapping_sub(self.at) as usize;
        let none = Exception { vector: 14, error: Some(0x14), address: pc };
        self.bytes.get(skip..).filter(|b| !b.is_empty()).ok_or(none)
    }
}

/// IR before and after optimisation and host code of the sequence, block by block.
fn translation(out: &mut String, env: &X86Env, mode: u64, config: Config, code: &Code64) {
    let info =
        GuestInfo { globals: X86::globals(), pc: PC, helpers: X86::helpers(), fp_control: X86::fp_control() };
    let start = code.insns.first().map_or(0, |p| p.ip);
    let side_exits = config.opt.contains(OptFlags::SIDE_EXITS);
    let unroll = config.opt.contains(OptFlags::UNROLL);
    let mut at = 0;
    // The jump at the end has five bytes.
    while at + 5 < code.bytes.len() {
        let pc = start + at as u64;
        let mut b = Builder::default();
        let limits = TranslateLimits {
            max_insns: config.max_insns,
            single_step: false,
            side_exits,
            unroll,
            path: &[],
        };
        let mut bytes = Bytes { at: start, bytes: &code.bytes };
        let Ok(done) = X86::translate(env, BlockKey::new(pc, mode), limits, &mut bytes, &mut b) else {
            break;
        };
        let mut block = b.finish();
        let _ = writeln!(out, "IR of the block at {pc:#x}:\n{}", text::print(&block, &info));
        Optimizer::new(config.opt, info).run(&mut block, false);
        let _ = writeln!(out, "optimised ({:?}):\n{}", config.opt, text::print(&block, &info));
        if let Ok(mut backend) = X86_64::new(info) {
            backend.tune(config.opt, config.count);
            let mut compiled = Compiled::default();
            let room = Room { start: 0x7000_0000_0000, end: 0x7000_0010_0000 };
            backend.compile(&block, room, 0, &mut compiled);
            out.push_str("host code:\n");
            disassemble(out, 64, room.start, &compiled.hot);
            out.push_str("out of line:\n");
            disassemble(out, 64, room.start + u64::from(compiled.cold_at), &compiled.cold);
        }
        at += done.bytes.max(1) as usize;
    }
}

/// Tells everything about a shrunk mismatch. `repeat` is the command that shows it again.
pub fn story(rig: &mut Rig, small: &Small, original: &Case, cpu: usize, repeat: &str) -> Result<String> {
    let mut out = String::new();
    let bitness = if small.case.sequence.wide { 64 } else { 32 };
    let configs = rig.configs();
    let mut verdicts = Vec::new();
    for (n, config) in configs.iter().enumerate() {
        let verdict = match rig.run_one(&small.case, &small.image, n)? {
            Verdict::Differ => "differs",
            Verdict::Agree => "agrees",
            Verdict::Skipped => "skipped",
        };
        let how = if config.interpret { "interpreted" } else { "compiled" };
        verdicts.push(format!(
            "  {verdict}: {how}, {:?}, {} instructions a block{}{}",
            config.opt,
            config.max_insns,
            if config.chain { "" } else { ", not linked" },
            if config.count { ", counting" } else { "" }
        ));
    }
    rig.run_one(&small.case, &small.image, cpu)?;
    let mode = rig.cpu_mut(cpu).mode_of(&small.case.frame);
    let mut code = Code64::default();
    rig.last(|placed, native, guest, stop| {
        let _ = writeln!(out, "\n=== mismatch: {} ===", signature(&small.case));
        let _ = writeln!(out, "{bitness}-bit code:");
        let start = placed.insns.first().map_or(0, |p| p.ip);
        let body = placed.bytes.len() - 5;
        disassemble(&mut out, bitness, start, &placed.bytes[..body]);
        out.push_str("from:\n");
        out.push_str(&describe_start(&small.case.frame));
        out.push_str("difference:\n");
        let before = After { frame: &small.case.frame, image: &small.image };
        out.push_str(&describe(before, native, guest, stop));
        let _ = writeln!(out, "by configuration:\n{}", verdicts.join("\n"));
        code = placed.clone();
    })?;
    translation(&mut out, rig.cpu(cpu).env(), mode, configs[cpu], &code);
    let _ =
        writeln!(out, "case {} ({} steps before shrinking)", original.number, original.sequence.steps.len());
    let _ = writeln!(out, "again: {repeat}");
    Ok(out)
}
