//! Where a character device goes: the value of `-serial` and `-debugcon`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use crate::cli::{UsageError, shown};

/// The host side of a character device, as the user described it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CharSpec {
    /// Nowhere.
    Null,
    /// This terminal, or whatever standard input and output are.
    Stdio {
        /// The escape character starts commands to the emulator.
        commands: bool,
        /// Ctrl-C and Ctrl-Z are the emulator's instead of the guest's.
        signals: bool,
    },
    /// A file that is written, and no input.
    File(PathBuf),
    /// A new pseudo-terminal.
    Pty,
    /// A unix socket.
    Unix {
        /// Where it is in the file system.
        path: PathBuf,
        /// Who calls whom.
        role: Role,
    },
    /// A TCP connection.
    Tcp {
        /// The host; empty for any address of this one.
        host: String,
        /// The port.
        port: u16,
        /// Who calls whom.
        role: Role,
    },
}

/// Who opens a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The emulator does, at its start.
    Client,
    /// The other side does.
    Server {
        /// The machine does not start before that.
        wait: bool,
    },
}

/// What is said about a value that means nothing.
const WAY_OUT: &str = "give stdio, mon:stdio, null, none, file:PATH, pty, unix:PATH or tcp:HOST:PORT";

impl CharSpec {
    /// Reads the value of `option`; `None` for a device that is not to exist.
    pub fn parse(option: &str, value: &OsStr) -> Result<Option<Self>, UsageError> {
        let bad = |why: String| Err(UsageError(format!("{option} {}: {why}", shown(value))));
        let bytes = value.as_bytes();
        let (kind, rest) = match bytes.iter().position(|byte| *byte == b':') {
            Some(at) => (&bytes[..at], Some(&bytes[at + 1..])),
            None => (bytes, None),
        };
        let path = |rest: &[u8]| PathBuf::from(OsStr::from_bytes(rest));
        Ok(Some(match (kind, rest) {
            (b"none", None) => return Ok(None),
            (b"null", None) => CharSpec::Null,
            (b"stdio", None) => CharSpec::Stdio { commands: false, signals: false },
            (b"pty", None) => CharSpec::Pty,
            (b"mon", Some(b"stdio")) => CharSpec::Stdio { commands: true, signals: false },
            (b"mon", Some(_)) => return bad("the monitor can share a terminal only; give mon:stdio".into()),
            (b"file", Some(rest)) if !rest.is_empty() => CharSpec::File(path(rest)),
            (b"file", _) => return bad("the file's name is missing; give file:PATH".into()),
            (b"unix", Some(rest)) if !rest.is_empty() && rest[0] != b',' => {
                let (name, properties) = split_at_comma(rest);
                match role(properties) {
                    Ok(role) => CharSpec::Unix { path: path(name), role },
                    Err(why) => return bad(why),
                }
            }
            (b"unix", _) => return bad("the socket's path is missing; give unix:PATH".into()),
            (b"tcp", Some(rest)) => {
                let (address, properties) = split_at_comma(rest);
                let address = String::from_utf8_lossy(address);
                let parsed =
                    address.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
                let Some((host, port)) = parsed else {
                    return bad(
                        "host and port are not understood; give tcp:HOST:PORT, such as tcp:localhost:4444"
                            .into(),
                    );
                };
                let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
                match role(properties) {
                    Ok(Role::Client) if host.is_empty() => {
                        return bad(
                            "the host to call is missing; give tcp:HOST:PORT, or add ,server=on".into()
                        );
                    }
                    Ok(role) => CharSpec::Tcp { host, port, role },
                    Err(why) => return bad(why),
                }
            }
            (b"tcp", None) => return bad("host and port are missing; give tcp:HOST:PORT".into()),
            (
                b"vc" | b"udp" | b"telnet" | b"websocket" | b"pipe" | b"chardev" | b"msmouse" | b"braille"
                | b"con",
                _,
            ) => {
                let kind = String::from_utf8_lossy(kind);
                return bad(format!("QEMU's {kind} is not supported by Tessera yet; {WAY_OUT}"));
            }
            _ if kind.starts_with(b"/dev/") || kind.starts_with(b"COM") => {
                return bad(format!("host devices are not supported by Tessera yet; {WAY_OUT}"));
            }
            _ => return bad(format!("it is not understood; {WAY_OUT}")),
        }))
    }
}

fn split_at_comma(bytes: &[u8]) -> (&[u8], &[u8]) {
    match bytes.iter().position(|byte| *byte == b',') {
        Some(at) => (&bytes[..at], &bytes[at + 1..]),
        None => (bytes, &[]),
    }
}

/// `server[=on|off]`, `wait[=on|off]`, `nowait`, `nodelay`.
fn role(properties: &[u8]) -> Result<Role, String> {
    let text = String::from_utf8_lossy(properties);
    let (mut server, mut wait) = (false, true);
    for property in text.split(',').filter(|property| !property.is_empty()) {
        match property {
            "server" | "server=on" => server = true,
            "server=off" => server = false,
            "wait" | "wait=on" => wait = true,
            "nowait" | "wait=off" => wait = false,
            // Always so.
            "nodelay" | "nodelay=on" => {}
            _ => return Err(format!("{property} is not supported by Tessera yet; server and wait=off are")),
        }
    }
    Ok(if server { Role::Server { wait } } else { Role::Client })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(value: &str) -> Option<CharSpec> {
        CharSpec::parse("-serial", OsStr::new(value)).unwrap()
    }

    #[test]
    fn what_is_understood() {
        assert_eq!(parse("none"), None);
        assert_eq!(parse("null"), Some(CharSpec::Null));
        assert_eq!(parse("mon:stdio"), Some(CharSpec::Stdio { commands: true, signals: false }));
        assert_eq!(parse("file:a:b,c"), Some(CharSpec::File("a:b,c".into())));
        assert_eq!(
            parse("unix:/tmp/s,server,nowait"),
            Some(CharSpec::Unix { path: "/tmp/s".into(), role: Role::Server { wait: false } })
        );
        assert_eq!(
            parse("tcp::4444,server=on"),
            Some(CharSpec::Tcp { host: String::new(), port: 4444, role: Role::Server { wait: true } })
        );
        assert_eq!(
            parse("tcp:[::1]:80,nodelay"),
            Some(CharSpec::Tcp { host: "::1".into(), port: 80, role: Role::Client })
        );
    }

    #[test]
    fn what_is_not() {
        for value in [
            "",
            "fish",
            "file",
            "file:",
            "unix",
            "unix:",
            "unix:,server",
            "tcp",
            "tcp:",
            "tcp:host",
            "tcp:host:port",
            "tcp::1",
            "tcp:h:70000",
            "tcp:h:1,telnet=on",
            "mon:pty",
            "vc",
            "/dev/ttyS0",
            "null:x",
            "udp::1@:2",
        ] {
            let message = CharSpec::parse("-serial", OsStr::new(value)).expect_err(value).to_string();
            assert!(message.starts_with(&format!("-serial {value}: ")) && message.contains(';'), "{message}");
        }
    }
}
