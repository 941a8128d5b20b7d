//! ONNX Runtime, loaded from a configured path, and sessions on it.
//!
//! The library is a file that the installation brings along; nothing is searched for and nothing is fetched. It is
//! loaded once for the life of the process, without telemetry. A session has one thread, its caller's, and no memory
//! arena: the models are small, the appliance too.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};

use ort::environment::Environment;
use ort::value::TensorRef;

use crate::features::{Feature, Features};
use crate::model::{Maker, ModelError, Package};
use crate::window::WindowConfig;

/// Why the library or a session cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    /// There is no such file.
    #[error("no ONNX Runtime library at {0}; models/fetch-onnxruntime DIRECTORY puts one there")]
    Absent(PathBuf),
    /// The file is no usable ONNX Runtime.
    #[error(
        "{path} cannot be used as ONNX Runtime: {reason}; version 1.17 or later of this machine's kind is needed"
    )]
    Unusable {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Another library is in use already.
    #[error("ONNX Runtime is loaded from {loaded} already; a process has one")]
    Other {
        /// The path in use.
        loaded: PathBuf,
    },
    /// The model does not fit its manifest, or the library does not take it.
    #[error("model {model}: {reason}")]
    Model {
        /// Name and version.
        model: String,
        /// What is wrong.
        reason: String,
    },
}

/// The loaded library. Cheap to clone.
#[derive(Clone)]
pub struct Runtime {
    environment: Environment,
}

impl std::fmt::Debug for Runtime {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runtime").finish_non_exhaustive()
    }
}

static LOADED: OnceLock<(PathBuf, Runtime)> = OnceLock::new();
static LOADING: Mutex<()> = Mutex::new(());

impl Runtime {
    /// Loads the library at `path`, or gives the one that was loaded from there before.
    pub fn load(path: &Path) -> Result<Self, RuntimeError> {
        // ONNX Runtime allows one environment in a process, so two callers must not race to make it.
        let _one_at_a_time = LOADING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((loaded, runtime)) = LOADED.get() {
            if loaded == path {
                return Ok(runtime.clone());
            }
            return Err(RuntimeError::Other { loaded: loaded.clone() });
        }
        if !path.is_file() {
            return Err(RuntimeError::Absent(path.to_owned()));
        }
        let unusable = |reason: String| RuntimeError::Unusable { path: path.to_owned(), reason };
        let environment = ort::init_from(path)
            .map_err(|e| unusable(e.to_string()))?
            .with_name("kinara")
            .with_telemetry(false)
            .build()
            .map_err(|e| unusable(e.to_string()))?;
        let runtime = Self { environment };
        Ok(LOADED.get_or_init(|| (path.to_owned(), runtime)).1.clone())
    }
}

/// What a model says of a window.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Score {
    /// The probability.
    Probability(f32),
    /// A feature that the model requires is absent.
    NotEnoughSignal(Feature),
}

/// A model, ready to run.
#[derive(Debug)]
pub struct Session {
    package: Package,
    session: ort::session::Session,
}

/// Why a model cannot be had from its files.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The package.
    #[error(transparent)]
    Package(#[from] ModelError),
    /// The library, or the model in it.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
}

impl Session {
    /// Verifies the package in a folder, loads the library and makes a session. A broken package needs no library in
    /// memory.
    pub fn open(library: &Path, package: &Path, maker: Option<Maker>) -> Result<Self, OpenError> {
        let package = Package::open(package, maker)?;
        Ok(Self::new(&Runtime::load(library)?, package)?)
    }

    /// The windows that the model was trained on.
    pub fn windows(&self) -> WindowConfig {
        let grid = self.package.manifest().window;
        WindowConfig { length: grid.length_ms, step: grid.step_ms, ..WindowConfig::default() }
    }

    /// Makes a session of a verified package, and checks that its tensors are those the manifest names.
    pub fn new(runtime: &Runtime, package: Package) -> Result<Self, RuntimeError> {
        let session = open(runtime, &package)
            .map_err(|reason| RuntimeError::Model { model: package.producer(), reason })?;
        let this = Self { package, session };
        let manifest = this.package.manifest();
        let has = |outlets: &[ort::value::Outlet], name: &str| outlets.iter().any(|o| o.name() == name);
        if !has(this.session.inputs(), &manifest.input.tensor) {
            return Err(this.fault(format!("it has no input {:?}", manifest.input.tensor)));
        }
        if !has(this.session.outputs(), &manifest.output.tensor) {
            return Err(this.fault(format!("it has no output {:?}", manifest.output.tensor)));
        }
        Ok(this)
    }

    /// The package.
    pub fn package(&self) -> &Package {
        &self.package
    }

    /// Asks the model about a window's features.
    pub fn score(&mut self, features: &Features) -> Result<Score, RuntimeError> {
        match self.package.input(features) {
            Ok(input) => self.run(&input).map(Score::Probability),
            Err(feature) => Ok(Score::NotEnoughSignal(feature)),
        }
    }

    /// Runs the model on normalised input.
    pub fn run(&mut self, input: &[f32]) -> Result<f32, RuntimeError> {
        let manifest = self.package.manifest();
        let outcome = run(&mut self.session, &manifest.input.tensor, &manifest.output.tensor, input);
        outcome.map_err(|reason| self.fault(reason)).and_then(|p| {
            if (0.0..=1.0).contains(&p) {
                Ok(p)
            } else {
                Err(self.fault(format!("{p} is not a probability")))
            }
        })
    }

    fn fault(&self, reason: String) -> RuntimeError {
        RuntimeError::Model { model: self.package.producer(), reason }
    }
}

fn open(runtime: &Runtime, package: &Package) -> Result<ort::session::Session, String> {
    ort::session::Session::builder(&runtime.environment)
        .map_err(|e| e.to_string())?
        .with_intra_threads(1)
        .map_err(|e| e.to_string())?
        .with_inter_threads(1)
        .map_err(|e| e.to_string())?
        .with_execution_providers([ort::ep::CPU::default().with_arena_allocator(false).build()])
        .map_err(|e| e.to_string())?
        .with_memory_pattern(false)
        .map_err(|e| e.to_string())?
        .with_intra_op_spinning(false)
        .map_err(|e| e.to_string())?
        .commit_from_memory(package.onnx())
        .map_err(|e| e.to_string())
}

fn run(session: &mut ort::session::Session, from: &str, to: &str, input: &[f32]) -> Result<f32, String> {
    let tensor = TensorRef::from_array_view(([1usize, input.len()], input)).map_err(|e| e.to_string())?;
    let outputs = session.run(ort::inputs![from => tensor]).map_err(|e| e.to_string())?;
    let output = outputs.get(to).ok_or_else(|| format!("no output {to:?}"))?;
    let (_, values) = output.try_extract_tensor::<f32>().map_err(|e| e.to_string())?;
    match values {
        [probability] => Ok(*probability),
        _ => Err(format!("{} values instead of one", values.len())),
    }
}
