//! Connections to PostgreSQL are encrypted as the URL says, against a server that has TLS.

#![allow(clippy::unwrap_used)]

use kinara_store::{Limits, connect, jobs, migrate};
use kinara_test_postgres::Postgres;

/// Writes a file of the server's own, as the server's own user.
fn put(server: &Postgres, database: &str, name: &str, text: &str) {
    let lines = text.replace('\'', "''");
    server
        .psql(
            database,
            &format!(
                "COPY (SELECT '{lines}') TO PROGRAM 'sed ''s/\\\\n/\\n/g'' > {name} && chmod 600 {name}'"
            ),
        )
        .unwrap();
}

/// A server that takes connections over TCP by TLS alone, with a certificate for `localhost`, and where its authority is.
fn server() -> (Postgres, String, tempfile::TempDir) {
    let server = Postgres::temporary().unwrap();
    let url = server.fresh_database().unwrap();
    let database = url.rsplit('/').next().unwrap().to_owned();
    let key = rcgen::KeyPair::generate().unwrap();
    let authority =
        rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap().self_signed(&key).unwrap();
    put(&server, &database, "server.crt", &authority.pem());
    put(&server, &database, "server.key", &key.serialize_pem());
    let files = tempfile::tempdir().unwrap();
    std::fs::write(files.path().join("ca.pem"), authority.pem()).unwrap();
    let other = rcgen::CertificateParams::new(["localhost".to_owned()]).unwrap();
    let other = other.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
    std::fs::write(files.path().join("other.pem"), other.pem()).unwrap();
    server.psql(&database, "ALTER SYSTEM SET ssl = on").unwrap();
    server.psql(&database, "SELECT pg_reload_conf()").unwrap();
    (server, url, files)
}

async fn is_encrypted(url: &str) -> Result<bool, String> {
    let pool = connect(url, "test", &Limits::default()).map_err(|error| error.to_string())?;
    let client = pool.get().await.map_err(|error| format!("{error:?}"))?;
    let row =
        client.query_one("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()", &[]).await.unwrap();
    Ok(row.get(0))
}

#[tokio::test]
async fn a_connection_is_encrypted_and_its_server_known_as_the_url_says() {
    let (_server, url, files) = server();
    // The server's certificate is for a name, and it listens on an address that this name has.
    let named = url.replace("127.0.0.1", "localhost");
    let until = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while is_encrypted(&format!("{url}?sslmode=require")).await.is_err() {
        assert!(std::time::Instant::now() < until, "the server never took TLS up");
        tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    }
    let (own, other) = (files.path().join("ca.pem"), files.path().join("other.pem"));
    for (url, encrypted) in [
        (url.clone(), true),
        (format!("{url}?sslmode=disable"), false),
        (format!("{url}?sslmode=prefer"), true),
        (format!("{url}?sslmode=require"), true),
        (format!("{url}?sslmode=verify-ca&sslrootcert={}", own.display()), true),
        (format!("{named}?sslmode=verify-full&sslrootcert={}", own.display()), true),
    ] {
        assert_eq!(is_encrypted(&url).await, Ok(encrypted), "{url}");
    }
    // Another authority; and a name that the certificate does not have.
    for url in [
        format!("{named}?sslmode=verify-full&sslrootcert={}", other.display()),
        format!("{url}?sslmode=verify-ca&sslrootcert={}", other.display()),
        format!("{url}?sslmode=verify-full&sslrootcert={}", own.display()),
    ] {
        is_encrypted(&url).await.unwrap_err();
    }
    // The queue of jobs and migrations, too.
    let verified = format!("{named}?sslmode=verify-full&sslrootcert={}", own.display());
    migrate(&verified).await.unwrap();
    let queue = jobs::pool(&verified, "test", &Limits::default()).unwrap();
    let role: String =
        queue.get().await.unwrap().query_one("SELECT current_user::text", &[]).await.unwrap().get(0);
    assert_eq!(role, "kinara_jobs");
    jobs::database(&verified, "test", &Limits::default()).unwrap();
}
