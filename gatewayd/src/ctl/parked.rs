//! `kinaractl parked`: batches that the cloud could not read.

use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::client::{CtlError, GatewayProxy};
use crate::local::bus::wire;

/// Copies all of them into a folder that only its owner may read: they are what people's bodies did.
pub async fn export(
    gateway: &GatewayProxy<'_>,
    parked: &[wire::Parked],
    folder: &Path,
) -> Result<Vec<PathBuf>, CtlError> {
    let mut made = std::fs::DirBuilder::new();
    made.recursive(true).mode(0o700).create(folder).map_err(|error| cannot(folder, &error))?;
    let mut files = Vec::new();
    for batch in parked {
        let bytes = gateway.parked_payload(&batch.kind, batch.buffer, batch.sequence).await?;
        let file = folder.join(format!("{}-{:016x}-{}.kinara", batch.kind, batch.buffer, batch.sequence));
        write(&file, &bytes).map_err(|error| cannot(&file, &error))?;
        files.push(file);
    }
    Ok(files)
}

fn write(file: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut out =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(file)?;
    out.write_all(bytes)?;
    out.sync_all()
}

fn cannot(path: &Path, error: &std::io::Error) -> CtlError {
    CtlError::Other(format!("{} cannot be written: {error}", path.display()))
}
