//! The operator's commands.

use crate::common::{Cloud, id};
use serde_json::json;

#[tokio::test]
async fn every_command_may_be_run_again_and_says_what_is() {
    let cloud = Cloud::start().await;
    let gateway = "3fa85f64-5717-4562-b3fc-2c963f66afa6";
    let commands: [&[&str]; 4] = [
        &["tenant", "add", "--name", "Third", "--slug", "third", "--time-zone", "Asia/Kolkata"],
        &[
            "wearer",
            "add",
            "--tenant",
            "third",
            "--external-id",
            "x",
            "--name",
            "X",
            "--consent-version",
            "v1",
        ],
        &["gateway", "add", "--tenant", "third", "--id", gateway, "--name", "Box"],
        &[
            "assign",
            "--tenant",
            "third",
            "--hardware",
            "kinara:00000000000000aa",
            "--wearer",
            "x",
            "--from",
            "2026-11-01T00:00:00Z",
        ],
    ];
    for command in commands {
        let first = cloud.admin(command).await.unwrap();
        let second = cloud.admin(command).await.unwrap();
        assert_eq!((&first["changed"], &second["changed"]), (&json!(true), &json!(false)), "{command:?}");
        assert_eq!(id(&first), id(&second));
    }
    assert_eq!(cloud.sql("SELECT time_zone FROM users WHERE external_id = 'x'"), "Asia/Kolkata");
    assert_eq!(
        cloud.sql(
            "SELECT count(*) FROM consents c JOIN users u ON u.id = c.user_id WHERE u.external_id = 'x'"
        ),
        "1"
    );
    let audit = cloud.sql(
        "SELECT string_agg(action, ',' ORDER BY at) FROM audit_log a JOIN tenants t ON t.id = a.tenant_id
         WHERE t.slug = 'third' AND a.actor = 'operator'",
    );
    assert_eq!(audit, "admin.tenant,admin.wearer,admin.gateway,admin.assign");

    for (command, says) in [
        (vec!["tenant", "add", "--name", "x", "--slug", "Not A Slug"], "small letters"),
        (vec!["tenant", "add", "--name", "x", "--slug", "x", "--time-zone", "Mars/Base"], "Mars/Base"),
        (vec!["wearer", "add", "--tenant", "none", "--external-id", "x", "--name", "X"], "tenant add"),
        (vec!["gateway", "add", "--tenant", "here", "--id", gateway, "--name", "x"], "another clinic's"),
        (
            vec!["member", "add", "--tenant", "here", "--email", "admin@there.example", "--role", "viewer"],
            "another clinic",
        ),
        (
            vec!["member", "add", "--tenant", "here", "--email", "new@here.example", "--role", "viewer"],
            "--password-stdin",
        ),
        (
            vec![
                "assign",
                "--tenant",
                "here",
                "--hardware",
                "kinara:1",
                "--wearer",
                "w1",
                "--from",
                "2026-01-01T00:00:00Z",
            ],
            "16 hex digits",
        ),
        (
            vec![
                "assign",
                "--tenant",
                "here",
                "--hardware",
                "kinara:0000000000000001",
                "--wearer",
                "none",
                "--from",
                "2026-01-01T00:00:00Z",
            ],
            "wearer add",
        ),
    ] {
        let error = cloud.admin(&command).await.unwrap_err();
        assert!(error.contains(says), "{command:?}: {error}");
    }
}

#[tokio::test]
async fn a_device_changes_hands_at_one_boundary_also_between_clinics() {
    let cloud = Cloud::start().await;
    let hardware = "kinara:0000000000000001";
    cloud
        .admin(&["wearer", "add", "--tenant", "here", "--external-id", "w2", "--name", "Two"])
        .await
        .unwrap();
    let assign = |tenant, wearer, from, frame: Option<&'static str>| {
        let mut command =
            vec!["assign", "--tenant", tenant, "--hardware", hardware, "--wearer", wearer, "--from", from];
        if let Some(frame) = frame {
            command.extend(["--at-frame", frame]);
        }
        command
    };
    let to_two = assign("here", "w2", "2026-11-01T10:00:00Z", Some("f000000000000001:42"));
    let made = cloud.admin(&to_two).await.unwrap();
    assert!(made["ended"].is_string());
    assert_eq!(made["device_id"], json!(cloud.here.device), "the clinic's device stays the same");
    assert_eq!(made["consent_id"], json!(null));
    assert_eq!(cloud.admin(&to_two).await.unwrap()["changed"], false);
    let away = cloud.admin(&assign("there", "w1", "2026-11-02T10:00:00Z", None)).await.unwrap();
    assert_ne!(away["device_id"], json!(cloud.here.device));
    assert_eq!(id(&cloud.admin(&to_two).await.unwrap()), id(&made), "an old order does not take it back");
    let rows = cloud.sql(&format!(
        "SELECT u.external_id, t.slug, a.valid_from, a.valid_to, a.from_seq, a.to_epoch = x'f000000000000001'::int8,
           a.to_seq
         FROM device_assignments a JOIN hardware h ON h.id = a.hardware_id JOIN users u ON u.id = a.user_id
           JOIN tenants t ON t.id = a.tenant_id WHERE h.hardware_id = '{hardware}' ORDER BY a.valid_from"
    ));
    assert_eq!(
        rows,
        "w1|here|2026-01-01 00:00:00+00|2026-11-01 10:00:00+00||t|42\n\
         w2|here|2026-11-01 10:00:00+00|2026-11-02 10:00:00+00|42||\n\
         w1|there|2026-11-02 10:00:00+00||||"
    );
    let worn = cloud.sql(&format!(
        "SELECT t.slug, u.external_id FROM devices d JOIN tenants t ON t.id = d.tenant_id
           LEFT JOIN users u ON u.id = d.user_id WHERE d.hardware_id = '{hardware}' ORDER BY 1"
    ));
    assert_eq!(worn, "here|\nthere|w1");
    let error = cloud.admin(&assign("here", "w2", "2026-10-01T10:00:00Z", None)).await.unwrap_err();
    assert!(error.contains("begin after"), "{error}");
}

#[tokio::test]
async fn a_wearer_who_is_being_erased_is_taken_for_nothing_until_they_are_gone() {
    let cloud = Cloud::start().await;
    let who = ["--tenant", "here", "--external-id", "w9"];
    let add = [&["wearer", "add"][..], &who, &["--name", "Nine", "--consent-version", "v1"]].concat();
    let erase = [&["wearer", "erase"][..], &who, &["--for-ever"]].concat();
    let assign =
        ["assign", "--tenant", "here", "--hardware", "kinara:00000000000000aa", "--wearer", "w9", "--from"];
    let assign = [&assign[..], &["2026-11-01T00:00:00Z"]].concat();
    let first = cloud.admin(&add).await.unwrap();
    assert_eq!(cloud.admin(&erase).await.unwrap()["changed"], true);
    for _ in 0..2 {
        for refused in [&add, &assign] {
            let error = cloud.admin(refused).await.unwrap_err();
            assert!(error.contains("w9 is being erased"), "{error}");
        }
        assert_eq!(cloud.admin(&erase).await.unwrap()["changed"], false);
    }
    assert_eq!(cloud.sql("SELECT count(*) FROM device_assignments a JOIN users u ON u.id = a.user_id WHERE u.external_id = 'w9'"), "0");
    // As the bridge does at the end.
    cloud.sql("DELETE FROM users WHERE external_id = 'w9'");
    let second = cloud.admin(&add).await.unwrap();
    assert_ne!(id(&first), id(&second));
    assert_eq!(cloud.admin(&assign).await.unwrap()["user_id"], json!(id(&second)));
}

#[tokio::test]
async fn an_assignment_is_made_to_begin_earlier_where_nobody_is_in_between() {
    let cloud = Cloud::start().await;
    let hardware = "kinara:00000000000000aa";
    cloud
        .admin(&["wearer", "add", "--tenant", "here", "--external-id", "w2", "--name", "Two"])
        .await
        .unwrap();
    let assign = async |wearer, from| {
        let line = ["assign", "--tenant", "here", "--hardware", hardware, "--wearer", wearer, "--from", from];
        cloud.admin(&line).await
    };
    let begins = || {
        cloud.sql(&format!(
            "SELECT u.external_id, to_char(a.valid_from AT TIME ZONE 'UTC', 'HH24:MI'), a.valid_to IS NULL
             FROM device_assignments a JOIN hardware h ON h.id = a.hardware_id JOIN users u ON u.id = a.user_id
             WHERE h.hardware_id = '{hardware}' ORDER BY a.valid_from"
        ))
    };
    let made = assign("w1", "2026-11-01T08:00:00Z").await.unwrap();
    for (from, changed) in
        [("2026-11-01T07:00:00Z", true), ("2026-11-01T07:00:00Z", false), ("2026-11-01T08:00:00Z", false)]
    {
        let answer = assign("w1", from).await.unwrap();
        assert_eq!((id(&answer), &answer["changed"]), (id(&made), &json!(changed)), "{from}");
        assert_eq!(begins(), "w1|07:00|t");
    }
    assert_eq!(cloud.sql("SELECT count(*) FROM audit_log WHERE action = 'admin.assign' AND target = 'kinara:00000000000000aa'"), "2");
    assign("w2", "2026-11-01T09:00:00Z").await.unwrap();
    let error = assign("w2", "2026-11-01T08:30:00Z").await.unwrap_err();
    assert!(error.contains("is or was somebody's"), "{error}");
    assert_eq!(begins(), "w1|07:00|f\nw2|09:00|t");
}

#[tokio::test]
async fn a_device_given_on_in_the_past_takes_along_what_is_stored_and_from_another_clinic_by_an_explicit_word()
 {
    let cloud = Cloud::start().await;
    let hardware = "kinara:0000000000000001";
    cloud
        .admin(&["wearer", "add", "--tenant", "here", "--external-id", "w2", "--name", "Two"])
        .await
        .unwrap();
    cloud.sql(&format!(
        "SELECT ts.ensure_partitions('2026-11-01', '2026-11-01');
         INSERT INTO ts.readings (time, tenant_id, user_id, device_id, type, idx, epoch, seq, value)
           SELECT '2026-11-01 07:00'::timestamptz + make_interval(mins => n), '{}', '{}', '{}', 1, 0, 1, n, 70
           FROM generate_series(0, 9) n;
         INSERT INTO ts.days SELECT DISTINCT tenant_id, user_id, (time AT TIME ZONE 'UTC')::date FROM ts.readings;
         INSERT INTO ts.written SELECT tenant_id, date_bin('1 hour', time, 'epoch'), 1 FROM ts.readings",
        cloud.here.id, cloud.here.wearer, cloud.here.device
    ));
    let assign = |tenant, wearer, from| {
        vec!["assign", "--tenant", tenant, "--hardware", hardware, "--wearer", wearer, "--from", from]
    };
    let stored = || {
        cloud.sql("SELECT ts.move(id, 3) FROM moves ORDER BY asked_at, id");
        cloud.sql(
            "SELECT t.slug, u.external_id, count(*), count(*) FILTER (WHERE d.tenant_id = t.id)
             FROM ts.readings r JOIN tenants t ON t.id = r.tenant_id JOIN users u ON u.id = r.user_id AND u.tenant_id = t.id
               JOIN devices d ON d.id = r.device_id GROUP BY 1, 2 ORDER BY 1, 2",
        )
    };
    cloud.admin(&assign("here", "w2", "2026-11-01T07:03:00Z")).await.unwrap();
    assert_eq!(stored(), "here|w1|3|3\nhere|w2|7|7");
    let mut away = assign("there", "w1", "2026-11-01T07:06:00Z");
    let error = cloud.admin(&away).await.unwrap_err();
    assert!(error.contains("up to 2026-11-01T07:09:00Z") && error.contains("--take-stored"), "{error}");
    assert_eq!(stored(), "here|w1|3|3\nhere|w2|7|7");
    away.push("--take-stored");
    assert_eq!(cloud.admin(&away).await.unwrap()["taken_from_another_clinic"], true);
    assert_eq!(stored(), "here|w1|3|3\nhere|w2|3|3\nthere|w1|4|4");
    let written = "SELECT t.slug, sum(readings) FROM ts.written w JOIN tenants t ON t.id = w.tenant_id GROUP BY 1 ORDER BY 1";
    assert_eq!(cloud.sql(written), "here|6\nthere|4");
    let told = "SELECT string_agg(t.slug || ' ' || action, ', ' ORDER BY t.slug, action) FROM audit_log a
      JOIN tenants t ON t.id = a.tenant_id WHERE action LIKE '%given_away' OR detail ->> 'stored_taken_over' = 'true'";
    assert_eq!(cloud.sql(told), "here admin.assign.stored_given_away, there admin.assign");
    // After the last stored frame nothing has to be said.
    assert_eq!(cloud.admin(&assign("here", "w1", "2026-11-01T07:10:00Z")).await.unwrap()["changed"], true);
}

#[tokio::test]
async fn a_gateway_is_retired_for_good_and_its_bonds_are_to_be_taken_off() {
    let cloud = Cloud::start().await;
    let gateway = cloud.here.gateway.to_string();
    cloud.sql(&format!(
        "UPDATE gateways SET state = '{{\"buffer\": \"00000000000000ab\", \"buffered_frames\": 7}}' WHERE id = '{gateway}';
         INSERT INTO gateway_keys (gateway_id, tenant_id, key, trusted_at) VALUES ('{gateway}', '{0}', sha256('k'), now());
         INSERT INTO bonds (tenant_id, gateway_id, hardware_id, adapter, how, since)
           VALUES ('{0}', '{gateway}', 'kinara:0000000000000001', '\\x010203040506', 'label', now())",
        cloud.here.id
    ));
    let retire = ["gateway", "retire", "--tenant", "here", "--id", &gateway];
    let error = cloud.admin(&["gateway", "retire", "--tenant", "there", "--id", &gateway]).await.unwrap_err();
    assert!(error.contains("no gateway"), "{error}");
    let first = cloud.admin(&retire).await.unwrap();
    assert_eq!((&first["changed"], &first["held_frames"]), (&json!(true), &json!(7)));
    assert_eq!(first["client_id"], json!(format!("{gateway}-00000000000000ab")));
    assert_eq!(cloud.admin(&retire).await.unwrap()["changed"], false);
    let left =
        "SELECT (SELECT count(*) FROM gateway_keys WHERE ended_at IS NULL), (SELECT count(*) FROM revocations
      WHERE settled_at IS NULL), (SELECT count(*) FROM audit_log WHERE action = 'admin.gateway.retire')";
    assert_eq!(cloud.sql(left), "0|1|1");
    let error = cloud
        .admin(&["gateway", "add", "--tenant", "here", "--id", &gateway, "--name", "Back"])
        .await
        .unwrap_err();
    assert!(error.contains("new id"), "{error}");
}
