//! Makes a maker's key, signs firmware images and model packages with it, and shows what an image is.
//!
//! The secret key is 32 bytes in hexadecimal, in a file that only its owner reads. The public one goes into wearables.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use ed25519_dalek::{Signature, Signer, SigningKey, VerifyingKey};
use kinara_protocol::image::{Board, HEADER_LEN, Header, MODEL_PREFIX, MODEL_SIGNATURE};
use sha2::{Digest, Sha256};

/// Firmware images: keys, signatures, headers.
#[derive(Debug, Parser)]
#[command(name = "kinara-firmware-image", version)]
struct Options {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Draws a maker's key into FILE and prints its public part
    Keygen {
        /// Where the secret goes; it must not exist
        file: PathBuf,
    },
    /// Puts a signed header before a payload
    Sign {
        /// The maker's secret key
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// MAJOR.MINOR.PATCH
        #[arg(long, value_parser = version)]
        version: [u8; 3],
        /// 0: the simulator, 1: the nRF52840
        #[arg(long, default_value_t = 1)]
        board: u8,
        /// What goes to flash
        payload: PathBuf,
        /// The image
        image: PathBuf,
    },
    /// Signs the manifest of a model package, which holds the model's digest
    SignModel {
        /// The maker's secret key
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
        /// The package's folder
        package: PathBuf,
    },
    /// Prints an image's header, and whether it is whole and signed by this key
    Show {
        /// The maker's public key, 64 hexadecimal digits
        #[arg(long, value_name = "HEX64")]
        maker: Option<String>,
        /// The image
        image: PathBuf,
    },
}

fn main() -> Result<()> {
    match Options::parse().what {
        What::Keygen { file } => keygen(&file),
        What::Sign { key, version, board, payload, image } => {
            sign(&key, version, Board(board), &payload, &image)
        }
        What::SignModel { key, package } => sign_model(&key, &package),
        What::Show { maker, image } => show(maker.as_deref(), &image),
    }
}

fn keygen(file: &Path) -> Result<()> {
    let mut secret = [0; 32];
    File::open("/dev/urandom").and_then(|mut noise| noise.read_exact(&mut secret)).context("/dev/urandom")?;
    let key = SigningKey::from_bytes(&secret);
    let mut out = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)
        .with_context(|| file.display().to_string())?;
    writeln!(out, "{}", hex::encode(secret)).with_context(|| file.display().to_string())?;
    println!("{}", hex::encode(key.verifying_key().to_bytes()));
    Ok(())
}

fn sign(key: &Path, version: [u8; 3], board: Board, payload: &Path, image: &Path) -> Result<()> {
    let key = secret(key)?;
    let bytes = fs::read(payload).with_context(|| payload.display().to_string())?;
    let mut header = Header::of(board, version, &bytes).context("the payload is too large")?;
    header.signature = key.sign(&header.signed()).to_bytes();
    fs::write(image, [header.encode().as_slice(), &bytes].concat())
        .with_context(|| image.display().to_string())
}

fn sign_model(key: &Path, package: &Path) -> Result<()> {
    let key = secret(key)?;
    let path = package.join("manifest.toml");
    let manifest = fs::read(&path).with_context(|| path.display().to_string())?;
    let signature = key.sign(&[MODEL_PREFIX, &manifest].concat());
    let path = package.join(MODEL_SIGNATURE);
    fs::write(&path, hex::encode(signature.to_bytes()) + "\n").with_context(|| path.display().to_string())
}

fn secret(file: &Path) -> Result<SigningKey> {
    let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    Ok(SigningKey::from_bytes(&unhex(text.trim()).context("the key has 64 hexadecimal digits")?))
}

fn show(maker: Option<&str>, image: &Path) -> Result<()> {
    let bytes = fs::read(image).with_context(|| image.display().to_string())?;
    let Some(header) = Header::decode(&bytes) else { bail!("{} is no image", image.display()) };
    let [major, minor, patch] = header.version;
    println!("version {major}.{minor}.{patch}, board {}, {} bytes", header.board.0, header.payload);
    let payload = &bytes[HEADER_LEN..];
    if payload.len() != header.payload as usize || Sha256::digest(payload).as_slice() != header.digest {
        bail!("it is not whole");
    }
    let Some(maker) = maker else { return Ok(()) };
    let maker = VerifyingKey::from_bytes(&unhex(maker).context("a key has 64 hexadecimal digits")?)?;
    maker
        .verify_strict(&header.signed(), &Signature::from_bytes(&header.signature))
        .context("it is not signed by this key")?;
    println!("signed by this key");
    Ok(())
}

fn version(text: &str) -> Result<[u8; 3], String> {
    let parts: Vec<u8> = text.split('.').filter_map(|part| part.parse().ok()).collect();
    parts.try_into().map_err(|_| "a version is MAJOR.MINOR.PATCH, each at most 255".to_owned())
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    hex::decode(text).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_package_is_signed_over_its_manifest_and_what_says_that_it_is_no_image() {
        let folder = std::env::temp_dir().join(format!("kinara-sign-model-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let key = folder.join("maker.key");
        fs::write(&key, "5a".repeat(32) + "\n").unwrap();
        fs::write(folder.join("manifest.toml"), "format = 1\n").unwrap();
        sign_model(&key, &folder).unwrap();
        let text = fs::read_to_string(folder.join(MODEL_SIGNATURE)).unwrap();
        fs::remove_dir_all(&folder).unwrap();
        let signature = Signature::from_slice(&hex::decode(text.trim()).unwrap()).unwrap();
        let maker = SigningKey::from_bytes(&[0x5a; 32]).verifying_key();
        assert!(maker.verify_strict(b"kinara model package\nformat = 1\n", &signature).is_ok());
    }

    #[test]
    fn keys_are_written_as_they_are_read() {
        let key = [0xa5; 32];
        assert_eq!(unhex(&hex::encode(key)), Some(key));
        assert_eq!((unhex("a5"), unhex("zz"), unhex("")), (None, None, None));
        assert_eq!(version("1.2.3"), Ok([1, 2, 3]));
        assert!(version("1.2").is_err() && version("1.2.300").is_err());
    }
}
