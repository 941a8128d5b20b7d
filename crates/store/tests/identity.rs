//! Ids that were written differently become one, and what cannot be decided is said.

#![allow(clippy::unwrap_used)]

use kinara_store::migrate;
use kinara_test_postgres::Postgres;

const AGAIN: &str = include_str!("../migrations/0020_one_identity.sql");

/// Two clinics whose operators typed addresses as they pleased.
const BEFORE: &str = "
    INSERT INTO tenants (id, name, slug) VALUES
      ('00000000-0000-0000-0000-000000000001', 'One', 'one'), ('00000000-0000-0000-0000-000000000002', 'Two', 'two');
    INSERT INTO users (id, tenant_id, external_id, display_name, created_at) VALUES
      ('00000000-0000-0000-0000-0000000000a1', '00000000-0000-0000-0000-000000000001', 'V1', ' Asha ', '2026-01-01'),
      ('00000000-0000-0000-0000-0000000000a2', '00000000-0000-0000-0000-000000000001', ' V1', '   ', '2026-01-02'),
      ('00000000-0000-0000-0000-0000000000a3', '00000000-0000-0000-0000-000000000001', '', 'Lata', '2026-01-03'),
      ('00000000-0000-0000-0000-0000000000b1', '00000000-0000-0000-0000-000000000002', 'V\u{200b}१२', 'Ravi', '2026-01-04');
    INSERT INTO hardware (id, hardware_id) VALUES
      ('00000000-0000-0000-0000-0000000000c1', 'bt:c0:ff:ee:00:00:01'),
      ('00000000-0000-0000-0000-0000000000c2', 'bt:c0:ff:ee:00:00:02'),
      ('00000000-0000-0000-0000-0000000000d2', 'bt:C0:FF:EE:00:00:02'),
      ('00000000-0000-0000-0000-0000000000c3', 'bt:C0-FF-EE-00-00-03'),
      ('00000000-0000-0000-0000-0000000000d3', 'bt:C0:FF:EE:00:00:03'),
      ('00000000-0000-0000-0000-0000000000c4', 'bt:hello world');
    INSERT INTO devices (id, tenant_id, hardware_id, name)
      SELECT ('00000000-0000-0000-0001-0000000000' || right(h.id::text, 2))::uuid,
        '00000000-0000-0000-0000-000000000001', h.hardware_id, 'Sensor' FROM hardware h;
    INSERT INTO device_assignments (id, hardware_id, tenant_id, user_id, device_id, valid_from, valid_to)
      SELECT ('00000000-0000-0000-0002-0000000000' || hw)::uuid, ('00000000-0000-0000-0000-0000000000' || hw)::uuid,
        '00000000-0000-0000-0000-000000000001', ('00000000-0000-0000-0000-0000000000' || wearer)::uuid,
        ('00000000-0000-0000-0001-0000000000' || hw)::uuid, began, ended
      FROM (VALUES ('c1', 'a1', timestamptz '2026-01-01', NULL::timestamptz),
        -- Only the small letters are somebody's.
        ('c2', 'a1', '2026-01-01', NULL),
        -- Two at once.
        ('c3', 'a2', '2026-01-01', NULL), ('d3', 'a3', '2026-01-02', NULL)) v(hw, wearer, began, ended);
    INSERT INTO ledger (hardware, epoch, seqs, highest) VALUES
      ('00000000-0000-0000-0000-0000000000c2', 7, '{[0,5)}', 4), ('00000000-0000-0000-0000-0000000000d2', 7, '{[4,9)}', 8);
    INSERT INTO quarantine (tenant_id, what, hardware_id, epoch, seq, reason, payload, digest) VALUES
      ('00000000-0000-0000-0000-000000000001', 'frame', 'bt:c0:ff:ee:00:00:02', 8, 1, 'no_assignment', '', 'x');";

#[test]
fn ids_that_were_typed_differently_become_one_and_what_cannot_be_decided_is_said() {
    let server = Postgres::temporary().unwrap();
    let url = server.fresh_database().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(migrate(&url)).unwrap();
    let database = url.rsplit('/').next().unwrap();
    let sql = |sql: &str| server.psql(database, sql).unwrap().trim().to_owned();
    sql(BEFORE);
    sql(AGAIN);
    assert_eq!(
        sql("SELECT string_agg(hardware_id, ', ' ORDER BY hardware_id COLLATE \"C\") FROM hardware"),
        "bt:C0-FF-EE-00-00-03, bt:C0:FF:EE:00:00:01, bt:C0:FF:EE:00:00:02, bt:C0:FF:EE:00:00:03, bt:hello world"
    );
    // The assignment of the small letters goes to the device, with what is in; one row of the clinic has the name.
    assert_eq!(
        sql("SELECT h.hardware_id, d.hardware_id, a.valid_to IS NULL FROM device_assignments a
             JOIN hardware h ON h.id = a.hardware_id JOIN devices d ON d.id = a.device_id
             WHERE h.hardware_id LIKE '%02'"),
        "bt:C0:FF:EE:00:00:02|bt:C0:FF:EE:00:00:02|t"
    );
    assert_eq!(sql("SELECT epoch, seqs, highest FROM ledger"), "7|{[0,9)}|8");
    assert_eq!(sql("SELECT hardware_id FROM quarantine"), "bt:C0:FF:EE:00:00:02");
    assert_eq!(sql("SELECT count(*) FROM devices WHERE hardware_id IS NULL AND user_id IS NULL"), "2");
    // Of two who had it at once the one under the right name goes on.
    assert_eq!(
        sql("SELECT u.external_id IS NULL, a.valid_to IS NULL FROM device_assignments a JOIN users u ON u.id = a.user_id
             JOIN hardware h ON h.id = a.hardware_id WHERE h.hardware_id ~ '03' ORDER BY a.valid_from"),
        "f|f\nt|t"
    );
    assert_eq!(
        sql("SELECT string_agg(action || ' ' || coalesce(detail->>'overlaps', detail->>'same_as'), ', ' ORDER BY action, detail->>'overlaps')
             FROM audit_log WHERE actor = 'migration'"),
        "migration.hardware false, migration.hardware true, migration.wearer V1"
    );
    assert_eq!(
        sql(
            "SELECT string_agg(coalesce('[' || external_id || ']', '-') || coalesce(display_name, '-'), ' ' ORDER BY id) FROM users"
        ),
        "[V1]Asha [ V1]- -Lata [V12]Ravi"
    );
    let before = sql("SELECT count(*) FROM audit_log");
    sql(AGAIN);
    assert_eq!(sql("SELECT count(*) FROM hardware"), "5", "again it changes nothing");
    assert!(sql("SELECT count(*) FROM audit_log") >= before);
}
