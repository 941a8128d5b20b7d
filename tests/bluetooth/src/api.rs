//! The cloud's API, as an administrator's browser calls it.

use crate::{BedError, Result};
use kinara_clinic::Clinic;
use kinara_clinic::clinic::Tenant;
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// How long an answer may take while machines are emulated beside it.
const PATIENCE: Duration = Duration::from_secs(20);

/// A clinic's API, logged in to.
#[derive(Debug)]
pub struct Api {
    address: SocketAddr,
    token: String,
}

impl Api {
    /// Starts the API, where it does not run yet, and logs in as an administrator of this tenant.
    pub fn open(clinic: &mut Clinic, tenant: &Tenant) -> Result<Self> {
        let login = clinic.add_member(tenant, "admin@north.example", "admin")?;
        let address = match clinic.api.as_ref().and_then(kinara_clinic::Process::address) {
            Some(address) => address,
            None => clinic.start_api()?,
        };
        let mut api = Self { address, token: String::new() };
        let answer =
            api.post("/api/v1/auth/login", &json!({"email": login.email, "password": login.password}))?;
        answer["access_token"].as_str().unwrap_or_default().clone_into(&mut api.token);
        if api.token.is_empty() {
            return Err(BedError::Broken("the API gave no token".to_owned()));
        }
        Ok(api)
    }

    /// What lies there.
    pub fn get(&self, path: &str) -> Result<Value> {
        self.ask("GET", path, "")
    }

    /// Asks for something to be done.
    pub fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.ask("POST", path, &body.to_string())
    }

    fn ask(&self, method: &str, path: &str, body: &str) -> Result<Value> {
        let broken = |what: &dyn std::fmt::Display| BedError::Broken(format!("{method} {path}: {what}"));
        let mut stream =
            TcpStream::connect_timeout(&self.address, PATIENCE).map_err(|error| broken(&error))?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(|error| broken(&error))?;
        let authorization = match self.token.as_str() {
            "" => String::new(),
            token => format!("Authorization: Bearer {token}\r\n"),
        };
        write!(
            stream,
            "{method} {path} HTTP/1.0\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
             {authorization}Connection: close\r\n\r\n{body}",
            self.address,
            body.len()
        )
        .map_err(|error| broken(&error))?;
        let mut answer = String::new();
        stream.take(4 << 20).read_to_string(&mut answer).map_err(|error| broken(&error))?;
        let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(|| broken(&"no HTTP answer"))?;
        if head.split_whitespace().nth(1) != Some("200") {
            return Err(broken(&answer));
        }
        serde_json::from_str(body).map_err(|error| broken(&error))
    }
}
