//! What machines boot (kernel, initrd, root) and what the air is made of: made once, kept under
//! `.kinara/bluetooth`, made anew when the scripts that make them change.

use crate::{BedError, Result, file};
use kinara_clinic::process::run;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The version of Bumble that `air/` was written for, and what it needs to be imported.
const AIR_PACKAGES: [&str; 6] =
    ["bumble==0.0.236", "pyee==13.0.1", "cryptography", "cffi", "pycparser", "typing_extensions"];

/// The scripts, as they are in the source tree.
pub fn scripts() -> PathBuf {
    kinara_clinic::clinic::root().join("tests/bluetooth")
}

/// Where everything of the bed is kept.
pub fn home() -> PathBuf {
    kinara_clinic::clinic::root().join(".kinara/bluetooth")
}

/// What machines boot.
#[derive(Debug, Clone)]
pub struct Image {
    /// The unpacked kernel.
    pub kernel: PathBuf,
    /// What finds the root.
    pub initrd: PathBuf,
    /// The root file system; machines write into copies of it that end with them.
    pub root: PathBuf,
    /// Which versions of what are in it, a line each.
    pub versions: String,
}

impl Image {
    /// The image that these scripts make; makes it where it is not there yet.
    pub fn ready() -> Result<Self> {
        let source = scripts().join("image");
        let folder = home().join(format!("image-{}", digest_of(&source)?));
        let versions = folder.join("versions.whole");
        let _only_one = lock("image")?;
        if !versions.exists() {
            make_image(&source, &folder)?;
            std::fs::copy(folder.join("versions"), &versions).map_err(file(&versions))?;
        }
        Ok(Self {
            kernel: folder.join("vmlinux"),
            initrd: folder.join("initrd.cpio"),
            root: folder.join("root.ext4"),
            versions: std::fs::read_to_string(&versions).map_err(file(&versions))?,
        })
    }
}

fn make_image(source: &Path, folder: &Path) -> Result<()> {
    eprintln!("making the machine's image in {} (once; two minutes)", folder.display());
    let mut command = if kinara_clinic::folders::is_root() {
        Command::new("bash")
    } else {
        // Nobody may be there to type a password.
        let mut sudo = Command::new("sudo");
        sudo.args(["-n", "bash"]);
        sudo
    };
    command.arg(source.join("build")).arg(folder);
    run(command, "making the machine's image", None).map(|_| ()).map_err(|error| {
        BedError::Image(format!(
            "{error}\nthe image is made as root (by sudo without a password otherwise); make it with: \
             sudo bash {} {}",
            source.join("build").display(),
            folder.display()
        ))
    })
}

/// The folder with the air's Python packages; fetched where it is not there yet.
pub fn air_packages() -> Result<PathBuf> {
    let folder = home().join(format!("air-{}", short_digest(AIR_PACKAGES.join(" ").as_bytes())));
    let _only_one = lock("air")?;
    if !folder.exists() {
        eprintln!("fetching what the air is made of (Bumble)");
        let new = folder.with_extension("new");
        let _ = std::fs::remove_dir_all(&new);
        let mut command = Command::new("python3");
        command.args(["-m", "pip", "install", "--quiet", "--no-deps", "--no-input", "--target"]);
        command.arg(&new).args(AIR_PACKAGES);
        run(command, "fetching Bumble (it wants Python 3.11 or newer)", None)?;
        std::fs::rename(&new, &folder).map_err(file(&folder))?;
    }
    Ok(folder)
}

/// Held while something shared is made.
pub(crate) fn lock(name: &str) -> Result<File> {
    let path = home().join(format!("{name}.lock"));
    std::fs::create_dir_all(home()).map_err(file(home()))?;
    let lock = File::create(&path).map_err(file(&path))?;
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)
        .map_err(|error| file(&path)(error.into()))?;
    Ok(lock)
}

/// What the files of a folder are, in their order by name.
fn digest_of(folder: &Path) -> Result<String> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .map_err(file(folder))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<std::io::Result<_>>()
        .map_err(file(folder))?;
    files.sort();
    let mut all = Vec::new();
    for path in files {
        all.extend_from_slice(path.file_name().unwrap_or_default().as_encoded_bytes());
        all.extend(std::fs::read(&path).map_err(file(&path))?);
    }
    Ok(short_digest(&all))
}

/// Enough to tell what these scripts made from what others did.
fn short_digest(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    hex::encode(&Sha256::digest(bytes)[..6])
}
