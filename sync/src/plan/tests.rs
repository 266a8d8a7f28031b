use fulmar_registry::trust::Active;

use super::*;
use crate::desired::DesiredModel;

fn digest(text: &str) -> Digest {
    Digest::of(text.as_bytes())
}

fn wanted(name: &str, bytes: &str, active: Active) -> DesiredModel {
    DesiredModel {
        name: name.parse().unwrap(),
        digest: digest(bytes),
        active,
        admission: Err("not admitted".to_owned()),
        revoked: None,
    }
}

fn held(name: &str, bytes: &str, slot: Option<Slot>) -> Held {
    Held {
        name: name.parse().unwrap(),
        digest: digest(bytes),
        slot,
        files: Files::Complete,
        origin: Origin::Fleet,
        pinned: false,
        revoked: false,
    }
}

fn planned(models: Vec<DesiredModel>, held: Vec<Held>) -> Plan {
    plan(&Desired { generation: 1, models }, &Actual { held, failed: Vec::new() })
}

#[test]
fn what_is_as_desired_needs_no_step() {
    let plan = planned(
        vec![wanted("a/m:1", "one", Active::Serve), wanted("a/m:2", "two", Active::Hold)],
        vec![held("a/m:1", "one", Some(Slot::Active)), held("a/m:2", "two", None)],
    );
    assert_eq!(plan, Plan::default());
}

#[test]
fn an_installed_release_is_activated_without_new_admission() {
    let plan = planned(
        vec![wanted("a/m:1", "two", Active::Serve)],
        vec![held("a/m:1", "one", Some(Slot::Active)), held("a/m:1", "two", Some(Slot::Candidate))],
    );
    let name = "a/m:1".parse().unwrap();
    assert_eq!(plan.steps, [Step::Activate { name, digest: digest("two") }]);
}

#[test]
fn what_is_not_admitted_is_blocked_and_what_serves_goes_on_serving() {
    let plan = planned(
        vec![wanted("a/m:1", "two", Active::Serve)],
        vec![held("a/m:1", "one", Some(Slot::Active))],
    );
    assert!(plan.steps.is_empty());
    assert_eq!(plan.blocked[0].reason, "not admitted");
}

#[test]
fn a_release_that_failed_is_not_tried_again() {
    let model = wanted("a/m:1", "two", Active::Serve);
    let failed = vec![(model.name.clone(), model.digest, "too slow".to_owned())];
    let held = vec![held("a/m:1", "two", Some(Slot::Candidate))];
    let plan = plan(&Desired { generation: 1, models: vec![model] }, &Actual { held, failed });
    assert!(plan.steps.is_empty());
    assert_eq!(plan.blocked[0].reason, "too slow");
}

#[test]
fn what_the_fleet_no_longer_names_goes_and_what_is_pinned_or_local_stays() {
    let mut local = held("b/own:1", "own", Some(Slot::Active));
    local.origin = Origin::Local;
    let mut pinned = held("a/pinned:1", "pinned", Some(Slot::Active));
    pinned.pinned = true;
    let plan = planned(Vec::new(), vec![held("a/m:1", "one", Some(Slot::Active)), local, pinned]);
    let (gone, kept) = ("a/m:1".parse().unwrap(), "a/pinned:1".parse().unwrap());
    let expected = [
        Step::Deactivate { name: ModelName::clone(&gone) },
        Step::Remove { name: gone, digest: digest("one") },
        Step::Deactivate { name: kept },
    ];
    assert_eq!(plan.steps, expected);
}

#[test]
fn holding_takes_whatever_serves_under_the_name_out_of_service() {
    let plan = planned(
        vec![wanted("a/m:1", "one", Active::Hold)],
        vec![held("a/m:1", "one", Some(Slot::Active))],
    );
    assert_eq!(plan.steps, [Step::Deactivate { name: "a/m:1".parse().unwrap() }]);
}

#[test]
fn a_broken_file_of_an_installed_release_is_mended_without_new_admission() {
    let mut broken = held("a/m:1", "one", Some(Slot::Active));
    broken.files = Files::Missing;
    let mend = Step::Repair { name: "a/m:1".parse().unwrap(), digest: digest("one") };
    let plan = planned(vec![wanted("a/m:1", "one", Active::Serve)], vec![broken.clone()]);
    assert_eq!((plan.steps, plan.blocked.len()), (vec![mend], 0));
    // What the local owner brought in was never admitted, whatever it is called.
    broken.origin = Origin::Local;
    let plan = planned(vec![wanted("a/m:1", "one", Active::Serve)], vec![broken]);
    assert!(plan.steps.is_empty());
    assert_eq!(plan.blocked.len(), 1, "nothing may be installed without admission");
}

#[test]
fn a_broken_release_beside_the_desired_one_is_mended_where_a_slot_needs_it() {
    let name: ModelName = "a/m:1".parse().unwrap();
    let current = || held("a/m:1", "two", Some(Slot::Active));
    let before = |slot| Held { files: Files::Missing, ..held("a/m:1", "one", slot) };
    let steps = |broken: Held| {
        let wanted = vec![wanted("a/m:1", "two", Active::Serve)];
        let plan = planned(wanted, vec![current(), broken]);
        assert!(plan.blocked.is_empty());
        plan.steps
    };
    let mend = Step::Repair { name: name.clone(), digest: digest("one") };
    assert_eq!(steps(before(Some(Slot::Previous))), [mend]);
    // Nothing goes back to it; the owner took it back; the local owner brought it.
    assert_eq!(steps(before(None)), []);
    assert_eq!(steps(Held { revoked: true, ..before(Some(Slot::Previous)) }), []);
    assert_eq!(steps(Held { origin: Origin::Local, ..before(Some(Slot::Previous)) }), []);
    // Of a model that the fleet does not name any more, nothing is fetched.
    let gone = planned(Vec::new(), vec![before(Some(Slot::Previous))]);
    assert_eq!(gone.steps, [Step::Remove { name, digest: digest("one") }]);
}

#[test]
fn a_revoked_model_is_taken_out_of_service_and_never_put_in() {
    let revoked = |active| DesiredModel {
        revoked: Some("revoked by the owner".to_owned()),
        ..wanted("a/m:1", "one", active)
    };
    let serving = vec![held("a/m:1", "one", Some(Slot::Active))];
    let plan = planned(vec![revoked(Active::Serve)], serving);
    assert_eq!(plan.steps, [Step::Deactivate { name: "a/m:1".parse().unwrap() }]);
    assert_eq!(plan.blocked[0].reason, "revoked by the owner");
    let plan = planned(vec![revoked(Active::Serve)], Vec::new());
    assert!(plan.steps.is_empty() && plan.blocked.len() == 1);
}

#[test]
fn a_release_whose_files_nobody_knows_is_installed_again_where_it_is_admitted_and_waits_elsewhere()
{
    let unknown = Held { files: Files::Unknown, ..held("a/a:1", "a", Some(Slot::Active)) };
    let actual = Actual { held: vec![unknown], ..Actual::default() };
    let desired =
        Desired { models: vec![wanted("a/a:1", "a", Active::Serve)], ..Desired::default() };
    let plan = plan(&desired, &actual);
    assert_eq!(plan.steps, []);
    assert_eq!(plan.blocked[0].reason, "not admitted");
}
