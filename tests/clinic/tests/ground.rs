//! The ground of a clinic on the real programs: it comes up, what is enrolled can be enrolled again, and it goes.
//!
//! Needs the programs built (`./kinara test unit` builds them first).
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use kinara_clinic::process::http_get;
use kinara_clinic::{Assignment, Clinic, GatewayPlan, Keep, Options, WearablePlan, folders};
use serde_json::json;

#[test]
fn a_clinic_comes_up_twice_in_the_same_folder_and_knows_who_was_there() {
    let mut options = Options::for_test("ground");
    options.keep = Keep::Always;
    let folder = options.folder.clone();
    let first = enrol(options.clone());
    options.keep = Keep::OnFailure;
    let second = enrol(options);
    assert_eq!(first, second);
    assert!(!folder.exists() && !folders::outside(&folder).exists());
}

fn enrol(options: Options) -> Vec<String> {
    let mut clinic = Clinic::start(options).unwrap();
    let address = clinic.start_api().unwrap();
    let (status, health) = http_get(address, "/healthz").unwrap();
    assert_eq!(status, 200, "{health}");
    let tenant = clinic.add_tenant("Asha Women's Clinic", "asha", "Asia/Kolkata").unwrap();
    let login = clinic.add_member(&tenant, "doctor@asha.example", "admin").unwrap();
    let wearer = clinic.add_wearer(&tenant, "W001", "Meera K.").unwrap();
    let gateway = clinic.add_gateway(&tenant, GatewayPlan::named("A")).unwrap();
    let wearable = clinic.add_wearable(WearablePlan::new(0x4b1a_0000_0000_00f1, "Kinara-01", 7)).unwrap();
    clinic.introduce(gateway, wearable).unwrap();
    let from = clinic.records.since(jiff::Timestamp::now()).unwrap();
    let hardware = clinic.wearables[wearable].hardware_id.clone();
    clinic.assign(&hardware, &wearer, Assignment { from, at_frame: None }).unwrap();
    let assignments = clinic.database.sql("SELECT count(*) FROM device_assignments").unwrap();
    assert_eq!(assignments.trim(), "1");
    clinic.wearables[wearable].process().start().unwrap();
    let status = clinic.wearables[wearable].control(&json!({"do": "status"})).unwrap();
    assert!(status.get("epoch").is_some(), "{status}");
    assert!(clinic.stop(std::time::Duration::from_secs(10)).is_empty());
    vec![
        tenant.id.to_string(),
        login.password,
        wearer.id.to_string(),
        clinic.gateways[gateway].id.to_string(),
        from.to_string(),
    ]
}
