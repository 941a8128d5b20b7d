//! What the files of `packaging/` give to whom.

const SYSUSERS: &str = include_str!("../../../packaging/sysusers/kinara.conf");
const TMPFILES: &str = include_str!("../../../packaging/tmpfiles/kinara.conf");
const POLICY: &str = include_str!("../../../packaging/dbus/org.kinara.Gateway1.conf");
const GATEWAYD: &str = include_str!("../../../packaging/systemd/kinara-gatewayd.service");
const LINKD: &str = include_str!("../../../packaging/systemd/kinara-linkd.service");
const SOCKET: &str = include_str!("../../../packaging/systemd/kinara-linkd.socket");

/// The words of the lines that are no remarks.
fn lines(text: &str) -> Vec<Vec<&str>> {
    let told = |line: &&str| !line.starts_with('#') && !line.is_empty();
    text.lines().filter(told).map(|line| line.split_whitespace().collect()).collect()
}

#[test]
fn neither_the_helper_nor_whoever_may_use_kinaractl_has_a_right_to_the_daemons_files() {
    // The group of the files has one member: the daemon's user, by birth.
    let members = lines(SYSUSERS);
    assert!(members.iter().any(|line| line[..2] == ["g", "kinara-admin"]));
    let added: Vec<_> = members.iter().filter(|line| line[0] == "m").map(|line| &line[1..]).collect();
    assert_eq!(added, [["kinara", "kinara-linkd"]]);
    let group_of = |path: &str| lines(TMPFILES).into_iter().find(|line| line[1] == path).unwrap()[4];
    assert_eq!(group_of("/etc/kinara"), "kinara");
    assert_eq!(group_of("/run/kinara"), "kinara-linkd");
    assert!(lines(LINKD).contains(&vec!["Group=kinara-linkd"]) && !LINKD.contains("SupplementaryGroups"));
    assert!(lines(SOCKET).contains(&vec!["SocketGroup=kinara-linkd"]));
    // The right to call comes from the bus alone.
    let groups: Vec<&str> =
        POLICY.split(r#"group=""#).skip(1).filter_map(|rest| rest.split('"').next()).collect();
    assert_eq!(groups, ["kinara-admin"]);
}

#[test]
fn the_key_is_handed_to_the_daemon_and_one_that_is_not_there_keeps_nothing_from_starting() {
    let unit = lines(GATEWAYD);
    assert!(unit.contains(&vec!["LoadCredential=gateway.key:/etc/kinara/gateway.key"]));
    // What systemd takes where the file is missing; without it the unit would not start.
    assert!(unit.iter().any(|line| line[0].starts_with("SetCredential=gateway.key:") && line[0].len() > 26));
    let example = include_str!("../../gatewayd.example.toml");
    assert!(example.contains(r#"key = "/run/credentials/kinara-gatewayd.service/gateway.key""#));
}
