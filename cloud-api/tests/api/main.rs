//! The API against a real PostgreSQL, a real Mosquitto, and as a program. One test program, so that it is linked once.

#![allow(clippy::unwrap_used, reason = "helpers of tests: a panic is the failure")]

mod access;
mod admin;
mod common;
mod desk;
mod doors;
mod ingest;
mod live;
mod login;
mod pages;
mod program;
mod resources;
mod shares;
