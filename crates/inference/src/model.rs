//! A model package: a directory with an ONNX file and a manifest that says what it is for.
//!
//! The promise: a package that opens is whole and understood. The ONNX file has the digest the manifest names, every
//! input is a feature this program computes, in the model's own order, with its normalisation, and the threshold is
//! the one it was validated with. Anything else is an error that says which field of which file is wrong. Where a maker's
//! key is configured, the manifest, and by its digest the model, is signed with it; and whatever a package finds is told with
//! the manifest's digest, so that two packages of one version are never taken for one.

use std::path::{Path, PathBuf};

use kinara_protocol::image::{MODEL_PREFIX, MODEL_SIGNATURE};
use ring::signature::{ED25519, UnparsedPublicKey};
use serde::Deserialize;
use sha2::{Digest, Sha256};

use crate::features::{Feature, Features};

/// The name of the manifest in a package.
pub const MANIFEST: &str = "manifest.toml";
/// The version of the manifest's own format.
const FORMAT: u32 = 1;
/// Bytes of the manifest's digest that a producer is told with: enough to tell packages apart; the signature is what proves.
const PRODUCER_DIGEST: usize = 6;
/// More than this is no model for an appliance.
const MAX_MODEL_BYTES: u64 = 64 << 20;

/// Why a package cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A file cannot be read.
    #[error(
        "model package: cannot read {path}: {source}; give the directory that holds {MANIFEST} and the ONNX file"
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The manifest is not TOML of the right shape.
    #[error("model package: {path}: {source}")]
    Manifest {
        /// The file.
        path: PathBuf,
        /// Line, column and reason.
        source: Box<toml::de::Error>,
    },
    /// A field holds what cannot be.
    #[error("model package: {path}: {field}: {problem}")]
    Field {
        /// The manifest.
        path: PathBuf,
        /// The field.
        field: String,
        /// What is wrong and what would be right.
        problem: String,
    },
    /// The ONNX file is not the one the manifest was written for.
    #[error(
        "model package: {path} has the SHA-256 {found}, the manifest says {expected}; install the package again"
    )]
    Digest {
        /// The ONNX file.
        path: PathBuf,
        /// What it is.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// The manifest is not signed by the maker whose key is configured.
    #[error(
        "model package: {path} is not the signature of the configured maker over {MANIFEST}; install the maker's own package, or \
         sign it: kinara-firmware-image sign-model"
    )]
    Signature {
        /// The signature's file.
        path: PathBuf,
    },
}

/// The public key of whoever makes models: 64 hexadecimal digits in a configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Maker([u8; 32]);

impl TryFrom<String> for Maker {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        let key = hex::decode(text.trim()).ok().and_then(|bytes| bytes.try_into().ok());
        key.map(Self).ok_or(
            "a maker's public key has 64 hexadecimal digits, as kinara-firmware-image keygen prints it",
        )
    }
}

impl Maker {
    fn has_signed(self, manifest: &[u8], signature: &[u8]) -> bool {
        let signature = std::str::from_utf8(signature).ok().and_then(|text| hex::decode(text.trim()).ok());
        let key = UnparsedPublicKey::new(&ED25519, self.0);
        signature.is_some_and(|signature| key.verify(&[MODEL_PREFIX, manifest].concat(), &signature).is_ok())
    }
}

/// What the manifest says.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Format of the manifest.
    pub format: u32,
    /// Name of the model.
    pub name: String,
    /// Version of the model.
    pub version: String,
    /// The kind of the events it makes.
    pub event: String,
    /// What it is, how it was made, and what it is not.
    pub description: String,
    /// The ONNX file.
    pub file: File,
    /// The windows it was trained on.
    pub window: Grid,
    /// Its input.
    pub input: Input,
    /// Its output.
    pub output: Output,
}

/// The ONNX file of a package.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// Its name, in the package's directory.
    pub path: String,
    /// Its SHA-256, in hexadecimal.
    pub sha256: String,
}

/// The windows of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grid {
    /// Length in ms.
    pub length_ms: u64,
    /// Step of the grid in ms.
    pub step_ms: u64,
}

/// The input of a model: a tensor of shape 1 × features.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// Name of the tensor.
    pub tensor: String,
    /// Normalised inputs are bounded to ± this.
    pub clip: f32,
    /// The features in the tensor's order.
    pub features: Vec<InputFeature>,
}

/// One feature: the model sees `(value - mean) / scale`, bounded to ± the input's `clip`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputFeature {
    /// The feature's name.
    pub name: String,
    /// Subtracted.
    pub mean: f32,
    /// Divided by.
    pub scale: f32,
    /// Without it the model is not asked. Otherwise an absent feature counts as its mean.
    pub required: bool,
}

/// The output of a model: one probability.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Output {
    /// Name of the tensor.
    pub tensor: String,
    /// From this probability on it is an event.
    pub threshold: f32,
}

/// A package that was read and verified.
#[derive(Debug, Clone)]
pub struct Package {
    manifest: Manifest,
    features: Vec<Feature>,
    onnx: Vec<u8>,
    /// The first digits of the manifest's SHA-256.
    digest: String,
}

impl Package {
    /// Reads the package in `directory` and verifies it: signed by `maker`, where there is one.
    pub fn open(directory: &Path, maker: Option<Maker>) -> Result<Self, ModelError> {
        let path = directory.join(MANIFEST);
        let bytes = read(&path)?;
        if let Some(maker) = maker {
            let path = directory.join(MODEL_SIGNATURE);
            if !maker.has_signed(&bytes, &read(&path)?) {
                return Err(ModelError::Signature { path });
            }
        }
        let text = String::from_utf8_lossy(&bytes);
        let manifest: Manifest = toml::from_str(&text)
            .map_err(|source| ModelError::Manifest { path: path.clone(), source: Box::new(source) })?;
        let features = manifest.check().map_err(|(field, problem)| ModelError::Field {
            path: path.clone(),
            field: field.to_owned(),
            problem,
        })?;
        let file = directory.join(&manifest.file.path);
        let onnx = read(&file)?;
        let found = hex::encode(Sha256::digest(&onnx));
        if !found.eq_ignore_ascii_case(&manifest.file.sha256) {
            return Err(ModelError::Digest { path: file, found, expected: manifest.file.sha256 });
        }
        let digest = hex::encode(&Sha256::digest(&bytes)[..PRODUCER_DIGEST]);
        Ok(Self { manifest, features, onnx, digest })
    }

    /// The manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The ONNX file.
    pub fn onnx(&self) -> &[u8] {
        &self.onnx
    }

    /// Name, version and the manifest's digest, as events carry it.
    pub fn producer(&self) -> String {
        format!("model:{}/{}+{}", self.manifest.name, self.manifest.version, self.digest)
    }

    /// The model's input for these features, or the name of a required one that is absent.
    pub fn input(&self, features: &Features) -> Result<Vec<f32>, Feature> {
        let clip = self.manifest.input.clip;
        self.manifest
            .input
            .features
            .iter()
            .zip(&self.features)
            .map(|(input, feature)| match features.get(*feature) {
                Some(value) => Ok(((value - input.mean) / input.scale).clamp(-clip, clip)),
                None if input.required => Err(*feature),
                None => Ok(0.0),
            })
            .collect()
    }
}

impl Manifest {
    fn check(&self) -> Result<Vec<Feature>, (&'static str, String)> {
        let word = |text: &str| {
            !text.is_empty()
                && text.len() <= 32
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        };
        if self.format != FORMAT {
            return Err(("format", format!("{} is not known; this program reads {FORMAT}", self.format)));
        }
        for (field, text) in [("name", &self.name), ("version", &self.version), ("event", &self.event)] {
            if !word(text) {
                return Err((field, format!("{text:?}: 1 to 32 letters, digits, '.', '_' or '-'")));
            }
        }
        if !word(&self.file.path) {
            return Err(("file.path", "the name of a file in the package, without a directory".to_owned()));
        }
        if self.window.step_ms == 0
            || !self.window.length_ms.is_multiple_of(1000)
            || self.window.length_ms < 30_000
        {
            let problem = "length_ms: whole seconds, at least 30000; step_ms: more than 0";
            return Err(("window", problem.to_owned()));
        }
        if self.input.features.is_empty() {
            return Err(("input.features", "at least one feature".to_owned()));
        }
        if !(self.output.threshold > 0.0 && self.output.threshold < 1.0) {
            return Err(("output.threshold", format!("{}: between 0 and 1", self.output.threshold)));
        }
        if self.input.clip.is_nan() || self.input.clip <= 0.0 {
            return Err(("input.clip", format!("{}: more than 0", self.input.clip)));
        }
        self.input
            .features
            .iter()
            .map(|input| {
                if !input.mean.is_finite() || !input.scale.is_finite() || input.scale <= 0.0 {
                    return Err((
                        "input.features",
                        format!("{}: mean finite, scale more than 0", input.name),
                    ));
                }
                Feature::by_name(&input.name).ok_or_else(|| {
                    let known: Vec<_> = Feature::ALL.iter().map(|f| f.name()).collect();
                    ("input.features", format!("{:?} is not one of {}", input.name, known.join(", ")))
                })
            })
            .collect()
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ModelError> {
    let fail = |source| ModelError::Read { path: path.to_owned(), source };
    let size = std::fs::metadata(path).map_err(fail)?.len();
    if size > MAX_MODEL_BYTES {
        return Err(fail(std::io::Error::other(format!("{size} bytes, more than {MAX_MODEL_BYTES}"))));
    }
    std::fs::read(path).map_err(fail)
}
