//! The log: `-d` chooses what, `-D` where to, `-dfilter` about which guest addresses.
//!
//! All parts of the emulator log through `tracing`, under a target that is named like QEMU's item. Here the
//! targets that were asked for are switched on, and records that carry a guest address (a field `pc`) outside
//! the filter are left out. What is not asked for costs one test of a flag that `tracing` keeps at each
//! place.

use std::fmt;
use std::io::Write;
use std::ops::RangeInclusive;
use std::sync::Mutex;

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::Registry;

use crate::cli::{LogConfig, UsageError};

/// Something that can be logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item {
    /// Its name, which is also the target of its records.
    pub name: &'static str,
    help: &'static str,
}

/// What Tessera logs.
const ITEMS: &[Item] = &[
    Item { name: "in_asm", help: "guest code of each block as it is translated" },
    Item { name: "op", help: "IR of each block as translated" },
    Item { name: "op_opt", help: "IR of each block after optimisation" },
    Item { name: "out_asm", help: "host code of each block" },
    Item { name: "int", help: "interrupts and exceptions as they are delivered" },
    Item { name: "exec", help: "each block as it is entered from the main loop" },
    Item { name: "cpu", help: "the processor's state before each block that exec shows" },
    Item { name: "mmu", help: "page walks, TLB fills and flushes" },
    Item { name: "cpu_reset", help: "the processor's state at each reset" },
    Item { name: "guest_errors", help: "what the guest does wrong" },
    Item { name: "unimp", help: "what the guest uses and this machine lacks" },
    Item { name: "nochain", help: "(with exec) do not link blocks, so that each execution shows" },
    Item {
        name: "stats",
        help: "figures of the translator, at the end; translated code counts what it executes, and is slower",
    },
];

/// What QEMU logs besides.
const QEMU_ITEMS: &[&str] = &[
    "op_ind",
    "op_plugin",
    "fpu",
    "pcall",
    "page",
    "strace",
    "tid",
    "vpu",
    "plugin",
    "trace",
    "invalid_mem",
    "all",
];

/// The text for `-d help`.
pub fn help() -> String {
    let mut text = String::from("Log items (comma separated):\n");
    for item in ITEMS {
        text.push_str(&format!("  {:<13} {}\n", item.name, item.help));
    }
    text
}

/// The items of one `-d`.
pub fn parse_items(list: &str) -> Result<Vec<Item>, UsageError> {
    list.split(',')
        .map(|name| match ITEMS.iter().find(|item| item.name == name) {
            Some(item) => Ok(*item),
            None if QEMU_ITEMS.contains(&name.split(':').next().unwrap_or(name)) => Err(UsageError(format!(
                "-d {list}: QEMU's item {name} is not supported by Tessera yet; -d help lists those that are"
            ))),
            None => Err(UsageError(format!(
                "-d {list}: there is no item {name:?}; -d help lists those there are"
            ))),
        })
        .collect()
}

/// Starts logging; `out` is where to. Warnings and errors of the emulator itself are always logged, to
/// standard error if nothing else is chosen.
pub fn start(config: &LogConfig, out: Box<dyn Write + Send>) {
    let mut targets = Targets::new().with_default(LevelFilter::WARN);
    for item in ITEMS {
        let on = config.items.contains(item);
        targets = targets.with_target(item.name, if on { LevelFilter::TRACE } else { LevelFilter::OFF });
    }
    let layer = Lines { out: Mutex::new(out), ranges: config.ranges.clone() };
    // Only tests start it twice in one process, and for them the first is as good.
    let _ = tracing::subscriber::set_global_default(Registry::default().with(layer.with_filter(targets)));
}

/// Writes each record's message as a line (or several), without time and place: the way QEMU's users read it.
struct Lines {
    out: Mutex<Box<dyn Write + Send>>,
    ranges: Vec<RangeInclusive<u64>>,
}

impl<S: Subscriber> Layer<S> for Lines {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if metadata.is_event() { Interest::always() } else { Interest::never() }
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut record = Record::default();
        event.record(&mut record);
        if let Some(pc) = record.pc
            && !self.ranges.is_empty()
            && !self.ranges.iter().any(|range| range.contains(&pc))
        {
            return;
        }
        let mut text = record.text;
        if *event.metadata().level() <= tracing::Level::WARN {
            text.insert_str(0, "tessera: ");
        }
        if !text.ends_with('\n') {
            text.push('\n');
        }
        let mut out = self.out.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        // A log that cannot be written must not stop the machine.
        let _ = out.write_all(text.as_bytes());
    }
}

/// A record's message, its other fields appended, and the guest address it is about.
#[derive(Default)]
struct Record {
    text: String,
    pc: Option<u64>,
}

impl Visit for Record {
    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "pc" {
            self.pc = Some(value);
        } else {
            self.record_debug(field, &format_args!("{value:#x}"));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        use fmt::Write;
        let separator = if self.text.is_empty() { "" } else { " " };
        // Writing to a string cannot fail.
        let _ = match field.name() {
            "message" => write!(self.text, "{value:?}"),
            name => write!(self.text, "{separator}{name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn records_are_lines_and_filtered_by_address() {
        let out = Shared::default();
        let layer = Lines { out: Mutex::new(Box::new(out.clone())), ranges: vec![0x100..=0x1ff] };
        let targets = Targets::new().with_target("exec", LevelFilter::TRACE);
        let subscriber = Registry::default().with(layer.with_filter(targets));
        tracing::subscriber::with_default(subscriber, || {
            tracing::trace!(target: "exec", pc = 0x150u64, "inside");
            tracing::trace!(target: "exec", pc = 0x250u64, "outside");
            tracing::trace!(target: "exec", "no address, {}", 42);
            tracing::trace!(target: "int", "not asked for");
            tracing::debug!(target: "exec", vector = 14u64, "with a field");
        });
        let text = String::from_utf8(out.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text, "inside\nno address, 42\nwith a field vector=0xe\n");
    }

    #[test]
    fn items() {
        assert_eq!(
            parse_items("int,exec").unwrap().iter().map(|item| item.name).collect::<Vec<_>>(),
            ["int", "exec"]
        );
        assert!(parse_items("").is_err());
        assert!(parse_items("trace:x").unwrap_err().to_string().contains("yet"));
    }
}
