//! A release that is as good as the one before goes through by itself.

use handover_load::Mix;
use serde_json::Value;

use crate::loaded::Loaded;
use crate::support::{Setup, assert_no_failure, more_answers};

const ROUNDS: u64 = 5;

#[tokio::test]
async fn five_canaries_in_a_row_under_mixed_load_go_through_all_steps_by_themselves_and_nobody_notices()
 {
    let loaded = Loaded::with(Setup::new(), Mix::standard()).await;
    let steps = [
        "--steps",
        "5,25,50",
        "--step-min",
        "300ms",
        "--units-min",
        "10",
        "--bake",
        "500ms",
    ];
    for to in 2..2 + ROUNDS {
        let plan = [&["--strategy", "canary", "--by", "connection"][..], &steps].concat();
        let ran = loaded.upgrade(&plan).await;
        ran.assert_code(0);
        let upgrade = &ran.json()["upgrade"];
        assert_eq!(
            (&upgrade["generation"], &upgrade["verdict"]),
            (&to.into(), &"committed".into())
        );
        assert_went_through(&upgrade["explanation"]);
        more_answers(&loaded.load, to).await;
    }
    let report = loaded.load.stop().await;
    assert_no_failure(&report);
}

#[tokio::test]
async fn a_canary_by_request_under_mixed_load_goes_through_all_steps_by_itself_and_nobody_notices()
{
    let loaded = Loaded::with(Setup::new(), Mix::standard()).await;
    let plan = [
        "--strategy",
        "canary",
        "--by",
        "request",
        "--steps",
        "5,50",
        "--step-min",
        "300ms",
        "--units-min",
        "50",
        "--bake",
        "500ms",
    ];
    let ran = loaded.upgrade(&plan).await;
    ran.assert_code(0);
    let explanation = &ran.json()["upgrade"]["explanation"];
    assert_eq!(explanation["cause"], "baked", "{explanation}");
    assert_eq!(
        explanation["step"],
        serde_json::json!([2, 2]),
        "{explanation}"
    );
    more_answers(&loaded.load, 2).await;
    let report = loaded.load.stop().await;
    println!("{report}");
    assert_no_failure(&report);
}

/// Every step, the flip and the bake.
fn assert_went_through(explanation: &Value) {
    assert_eq!(explanation["cause"], "baked", "{explanation}");
    assert_eq!(explanation["share"], 10_000, "{explanation}");
    assert_eq!(
        explanation["step"],
        serde_json::json!([3, 3]),
        "{explanation}"
    );
}
