//! `-cpu`'s text: a model's name, then features to add or take away and other settings, separated by commas.
//!
//! What a model has and the engine does not support is left out, with a warning; what is asked for by name and cannot be
//! had is an error. A feature whose prerequisite was taken away goes with it, with a warning, unless it was asked for.

use super::features::{Feature, FeatureSet, Word};
use super::models::{self, IMPLEMENTED, Vendor};
use super::{CpuidTable, Identity, table};

/// What is wrong with a `-cpu` text; each message is one sentence.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CpuError {
    /// No such model.
    #[error("unknown CPU model '{0}'; `-cpu help` lists the models")]
    Model(String),
    /// A model that stands for AVX-512.
    #[error("CPU model '{0}' is AVX-512, which is not implemented; use x86-64-v3 or max")]
    NoAvx512(String),
    /// The host's own CPU can only be had where the host's CPU executes the guest.
    #[error("CPU model 'host' needs `-accel kvm`; use max")]
    Host,
    /// No such feature.
    #[error("unknown CPU feature or setting '{0}'; `-cpu help` lists them")]
    Feature(String),
    /// The model has features that are not supported, and `enforce` is given.
    #[error(
        "CPU model '{model}' has features that are not supported: {features}; leave out `enforce`, or use max"
    )]
    Enforced {
        /// The model.
        model: String,
        /// Names of features.
        features: String,
    },
    /// The feature does not work.
    #[error("CPU feature '{0}' is not implemented; leave it out")]
    NotImplemented(String),
    /// A feature was asked for whose prerequisite is absent.
    #[error("CPU feature '{feature}' needs '{needs}'; add `+{needs}`")]
    Needs {
        /// The feature.
        feature: String,
        /// What it needs.
        needs: String,
    },
    /// Not `+feature`, `-feature` or `feature=on|off`.
    #[error("'{0}' is not a CPU feature setting; write `+feature`, `-feature` or `feature=on|off`")]
    Syntax(String),
    /// A setting with a value it cannot have.
    #[error("{setting}={value}: it must be {expected}")]
    Value {
        /// The setting.
        setting: &'static str,
        /// What was given.
        value: String,
        /// What it can be.
        expected: &'static str,
    },
}

/// Makes a table of `-cpu`'s text for the translator; warnings are dropped.
///
/// ```
/// use tessera_x86::cpuid::{self, Feature};
/// let cpu = cpuid::parse("max,-smap,pcid=off").unwrap();
/// assert!(!cpu.has(Feature::SMAP) && cpu.has(Feature::SMEP));
/// assert!(cpuid::parse("80986").is_err());
/// ```
pub fn parse(text: &str) -> Result<CpuidTable, CpuError> {
    parse_for(text, &IMPLEMENTED).map(|(table, _)| table)
}

/// Makes a table of `-cpu`'s text for an engine that supports these features. Also gives the warnings that a user should
/// see, one sentence each.
///
/// ```
/// use tessera_x86::cpuid::{models::IMPLEMENTED, parse_for};
/// let (cpu, warnings) = parse_for("Haswell", &IMPLEMENTED).unwrap();
/// assert_eq!(cpu.model(), "Haswell");
/// assert!(warnings[0].contains("hle"));
/// ```
pub fn parse_for(text: &str, supported: &FeatureSet) -> Result<(CpuidTable, Vec<String>), CpuError> {
    let mut parts = text.split(',');
    let name = parts.next().unwrap_or_default();
    let (model, version) = models::find(name).ok_or_else(|| match name {
        "host" => CpuError::Host,
        "x86-64-v4" => CpuError::NoAvx512(name.to_string()),
        _ => CpuError::Model(name.to_string()),
    })?;
    let (features, chip) = model.version(version).unwrap_or((model.features, model.chip));
    let mut request = Request {
        features: features.with(&[Feature::HYPERVISOR]),
        asked: FeatureSet::default(),
        refused: FeatureSet::default(),
        identity: Identity::new(&chip, model.phys_bits),
        fixed_level: false,
        fixed_xlevel: false,
        fixed_phys_bits: false,
        check: true,
        enforce: false,
        kvm: true,
    };
    if name == "base" {
        request.features.set(Feature::HYPERVISOR, false);
    }
    for part in parts {
        request.setting(part, supported)?;
    }
    let (features, warnings) = request.resolve(name, supported)?;
    let identity = request.identify(&features);
    let mut table = CpuidTable::new(model.name, identity, features);
    table.kvm = request.kvm;
    Ok((table, warnings))
}

/// What a text asks for.
struct Request {
    features: FeatureSet,
    /// Features that were named, to have and not to have.
    asked: FeatureSet,
    refused: FeatureSet,
    identity: Identity,
    fixed_level: bool,
    fixed_xlevel: bool,
    fixed_phys_bits: bool,
    check: bool,
    enforce: bool,
    kvm: bool,
}

impl Request {
    fn setting(&mut self, part: &str, supported: &FeatureSet) -> Result<(), CpuError> {
        if let Some(name) = part.strip_prefix('+') {
            return self.feature(name, true, supported);
        }
        if let Some(name) = part.strip_prefix('-') {
            return self.feature(name, false, supported);
        }
        let Some((name, value)) = part.split_once('=') else {
            return match part {
                "" => Err(CpuError::Syntax(part.to_string())),
                "check" | "enforce" | "kvm" => self.switch(part, true),
                _ => self.feature(part, true, supported),
            };
        };
        let switch = match value {
            "on" | "true" | "yes" => Some(true),
            "off" | "false" | "no" => Some(false),
            _ => None,
        };
        match (name, switch) {
            ("check" | "enforce" | "kvm", Some(on)) => self.switch(name, on),
            _ if self.identity_setting(name, value)? => Ok(()),
            (_, Some(on)) => self.feature(name, on, supported),
            _ if Feature::by_name(name).is_none() => Err(CpuError::Feature(name.to_string())),
            _ => Err(CpuError::Syntax(part.to_string())),
        }
    }

    /// `kvm=off` hides KVM's own leaves and its clock.
    fn switch(&mut self, name: &str, on: bool) -> Result<(), CpuError> {
        match name {
            "check" => self.check = on,
            "enforce" => self.enforce = on,
            _ => self.kvm = on,
        }
        Ok(())
    }

    fn feature(&mut self, name: &str, on: bool, supported: &FeatureSet) -> Result<(), CpuError> {
        let feature = Feature::by_name(name).ok_or_else(|| CpuError::Feature(name.to_string()))?;
        if on && !supported.has(feature) {
            return Err(CpuError::NotImplemented(name.to_string()));
        }
        self.features.set(feature, on);
        self.asked.set(feature, on);
        self.refused.set(feature, !on);
        Ok(())
    }

    /// Whether `name` is a setting of the CPU's identity, which then has that value.
    fn identity_setting(&mut self, name: &str, value: &str) -> Result<bool, CpuError> {
        let number = |setting: &'static str, min: u32, max: u32, expected: &'static str| {
            let parsed = match value.strip_prefix("0x") {
                Some(hex) => u32::from_str_radix(hex, 16).ok(),
                None => value.parse().ok(),
            };
            parsed.filter(|v| (min..=max).contains(v)).ok_or(CpuError::Value {
                setting,
                value: value.to_string(),
                expected,
            })
        };
        match name {
            "vendor" => {
                let bytes = value.bytes().collect::<Vec<u8>>();
                self.identity.vendor =
                    Vendor(bytes.try_into().ok().filter(|b: &[u8; 12]| b.is_ascii()).ok_or_else(|| {
                        CpuError::Value {
                            setting: "vendor",
                            value: value.to_string(),
                            expected: "a name of 12 characters, such as GenuineIntel or AuthenticAMD",
                        }
                    })?);
            }
            "family" => self.identity.signature[0] = number("family", 0, 270, "a number up to 270")? as u16,
            "model" => self.identity.signature[1] = number("model", 0, 255, "a number up to 255")? as u16,
            "stepping" => self.identity.signature[2] = number("stepping", 0, 15, "a number up to 15")? as u16,
            "level" => {
                self.identity.level = number("level", 0, 0x20, "a number up to 0x20")?;
                self.fixed_level = true;
            }
            "xlevel" => {
                let expected = "0 or a number from 0x80000000 to 0x80000022";
                let v = number("xlevel", 0, 0x8000_0022, expected)?;
                if v != 0 && v < 0x8000_0000 {
                    return Err(CpuError::Value { setting: "xlevel", value: value.to_string(), expected });
                }
                self.identity.xlevel = v;
                self.fixed_xlevel = true;
            }
            "model-id" => {
                if value.len() > 48 || !value.is_ascii() {
                    let expected = "a text of up to 48 ASCII characters";
                    return Err(CpuError::Value { setting: "model-id", value: value.to_string(), expected });
                }
                self.identity.brand = [0; 48];
                self.identity.brand[..value.len()].copy_from_slice(value.as_bytes());
            }
            "phys-bits" => {
                self.identity.phys_bits = number("phys-bits", 32, 52, "a number from 32 to 52")? as u8;
                self.fixed_phys_bits = true;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// The features that the CPU gets, and what to warn of.
    fn resolve(&self, name: &str, supported: &FeatureSet) -> Result<(FeatureSet, Vec<String>), CpuError> {
        let mut warnings = Vec::new();
        let mut features = self.features.intersection(supported);
        features.close();
        if let Some(feature) = self.asked.missing_in(&features).next() {
            let needs = feature.needs().iter().find(|&&n| !features.has(n));
            return Err(CpuError::Needs {
                feature: feature.name().to_string(),
                needs: needs.map_or("?", |n| n.name()).to_string(),
            });
        }
        let names = |list: Vec<Feature>| list.iter().map(|f| f.name()).collect::<Vec<_>>().join(", ");
        // What only the user's own refusals take away is told apart from what is not there at all.
        let mut possible = self.features.union(self.refused).intersection(supported);
        possible.close();
        let (unsupported, implied): (Vec<_>, Vec<_>) =
            self.features.missing_in(&features).partition(|&f| !possible.has(f));
        if !unsupported.is_empty() {
            if self.enforce {
                return Err(CpuError::Enforced { model: name.to_string(), features: names(unsupported) });
            }
            warnings.push(format!(
                "CPU model '{name}' is without features that are not supported: {}",
                names(unsupported)
            ));
        }
        if !implied.is_empty() {
            warnings.push(format!(
                "CPU features are off because they need others that are off: {}",
                names(implied)
            ));
        }
        if !self.check {
            warnings.clear();
        }
        Ok((features, warnings))
    }

    /// The identity with leaves and address bits to suit the features, where the text does not fix them.
    fn identify(&self, features: &FeatureSet) -> Identity {
        let mut identity = self.identity;
        let any = |words: &[Word]| words.iter().any(|&w| features.word(w) != 0);
        let raise = |level: &mut u32, to: u32, condition: bool| {
            if condition {
                *level = (*level).max(to);
            }
        };
        if !self.fixed_level {
            let level = &mut identity.level;
            raise(level, 0x6, any(&[Word::L6Eax]));
            let leaf7 =
                [Word::L7Ebx, Word::L7Ecx, Word::L7Edx, Word::L7Sub1Eax, Word::L7Sub1Edx, Word::L7Sub2Edx];
            raise(level, 0x7, any(&leaf7));
            raise(level, 0xd, features.has(Feature::XSAVE));
        }
        if !self.fixed_xlevel {
            let xlevel = &mut identity.xlevel;
            raise(xlevel, 0x8000_0001, any(&[Word::Ext1Edx, Word::Ext1Ecx]));
            raise(xlevel, 0x8000_0007, any(&[Word::Ext7Edx]));
            raise(xlevel, 0x8000_0008, any(&[Word::Ext8Ebx]) || features.has(Feature::LM));
            raise(xlevel, 0x8000_0021, any(&[Word::Ext21Eax]));
        }
        if !self.fixed_phys_bits {
            // Guests that cannot ask take 36 bits for granted, or 32 where page tables have no room for more.
            let limit = if !features.has(Feature::PAE) && !features.has(Feature::PSE36) {
                32
            } else if identity.xlevel < 0x8000_0008 {
                36
            } else {
                52
            };
            identity.phys_bits = identity.phys_bits.min(limit);
        }
        debug_assert!(
            table::ROWS
                .iter()
                .all(|r| { !features.has(r.feature) || r.needs.iter().all(|&n| features.has(n)) })
        );
        identity
    }
}

#[cfg(test)]
mod tests {
    use super::super::Dynamic;
    use super::*;

    fn warnings(text: &str) -> Vec<String> {
        parse_for(text, &IMPLEMENTED).expect("a good text").1
    }

    #[test]
    fn text_is_parsed_or_refused() {
        let t = parse("max,-sse4.2,+la57,rdrand=off").unwrap();
        assert!(t.has(Feature::SSE41) && !t.has(Feature::SSE42));
        assert!(t.has(Feature::LA57) && !t.has(Feature::RDRAND));
        assert_eq!(parse("z80").unwrap_err(), CpuError::Model("z80".into()));
        assert_eq!(parse("Haswell-v9").unwrap_err(), CpuError::Model("Haswell-v9".into()));
        assert_eq!(parse("host").unwrap_err(), CpuError::Host);
        assert_eq!(parse("x86-64-v4").unwrap_err(), CpuError::NoAvx512("x86-64-v4".into()));
        assert_eq!(parse("max,+frob").unwrap_err(), CpuError::Feature("frob".into()));
        assert_eq!(parse("max,frob=3").unwrap_err(), CpuError::Feature("frob".into()));
        assert_eq!(parse("max,smap=maybe").unwrap_err(), CpuError::Syntax("smap=maybe".into()));
        assert_eq!(parse("max,+avx512f").unwrap_err(), CpuError::NotImplemented("avx512f".into()));
        assert_eq!(
            parse("max,-sse2,+sse4.2").unwrap_err(),
            CpuError::Needs { feature: "sse4.2".into(), needs: "sse4.1".into() }
        );
        assert!(matches!(parse("max,"), Err(CpuError::Syntax(_))));
        assert!(matches!(parse(""), Err(CpuError::Model(_))));
    }

    #[test]
    fn both_spellings_and_either_order_will_do() {
        for text in ["max,-sse4_2", "max,sse4.2=off", "max,sse4-2=no", "max,+sse4_2,-sse4.2"] {
            let t = parse(text).unwrap();
            assert!(t.has(Feature::SSE41) && !t.has(Feature::SSE42), "{text}");
        }
        assert!(parse("max,-sse4_2,+sse4.2").unwrap().has(Feature::SSE42));
    }

    #[test]
    fn identity_can_be_set() {
        let text = "pentium3,vendor=AuthenticAMD,family=0x17,model=49,stepping=2,level=7,xlevel=0x80000008,\
                    model-id=A chip,phys-bits=34";
        let t = parse(text).unwrap();
        let q = |leaf| t.query(leaf, 0, &Dynamic::default());
        assert_eq!(q(0)[0], 7);
        assert_eq!(q(0)[1].to_le_bytes(), *b"Auth");
        assert_eq!(q(1)[0], 0x0083_0f12);
        assert_eq!(q(0x8000_0000)[0], 0x8000_0008);
        assert_eq!(q(0x8000_0002)[0].to_le_bytes(), *b"A ch");
        assert_eq!((t.phys_bits(), q(0x8000_0008)[0] & 0xff), (34, 34));
        for bad in ["vendor=Intel", "family=999", "stepping=16", "phys-bits=64", "level=x", "xlevel=8"] {
            assert!(matches!(parse(&format!("max,{bad}")), Err(CpuError::Value { .. })), "{bad}");
        }
    }

    #[test]
    fn what_is_left_out_is_told() {
        let w = warnings("Haswell");
        assert!(w.len() == 1 && w[0].contains("hle") && w[0].contains("rtm"), "{w:?}");
        assert!(warnings("Haswell,check=off").is_empty());
        assert!(warnings("Haswell,-hle,-rtm").iter().all(|w| !w.contains("rtm")));
        let e = parse("Haswell,enforce").unwrap_err();
        assert!(matches!(e, CpuError::Enforced { .. }), "{e}");
        assert!(warnings("max,kvm=off").is_empty() && warnings("Nehalem").is_empty());
    }

    #[test]
    fn without_long_mode_goes_what_needs_it() {
        let (t, w) = parse_for("max,lm=off", &IMPLEMENTED).unwrap();
        for f in [Feature::LM, Feature::PCID, Feature::CX16, Feature::FSGSBASE, Feature::PDPE1GB] {
            assert!(!t.has(f), "{}", f.name());
        }
        assert!(t.has(Feature::SSE42));
        assert!(w.len() == 1 && w[0].contains("pcid") && !w[0].contains("not supported"), "{w:?}");
        assert!(parse("max,lm=off,+pcid").is_err());
    }

    #[test]
    fn levels_rise_with_features() {
        let t = parse("pentium3,+smep,+nx").unwrap();
        assert_eq!(t.query(0, 0, &Dynamic::default())[0], 7);
        assert_eq!(t.query(0x8000_0000, 0, &Dynamic::default())[0], 0x8000_0001);
        assert_eq!(parse("pentium3,+smep,level=3").unwrap().query(0, 0, &Dynamic::default())[0], 3);
    }

    #[test]
    fn address_bits_follow_page_tables() {
        for (text, bits) in [("486", 32), ("pentium", 32), ("pentium3", 36), ("coreduo", 32), ("qemu64", 40)]
        {
            assert_eq!(parse(text).unwrap().phys_bits(), bits, "{text}");
        }
        assert_eq!(parse("max,-pae,-pse36").unwrap().phys_bits(), 32);
    }
}
