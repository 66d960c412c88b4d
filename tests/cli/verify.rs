//! Who answers fresh connections.

use std::fs;

use crate::operated::Operated;
use crate::support::Setup;

#[tokio::test]
async fn verify_names_every_address_and_ends_with_0_if_who_should_has_answered() {
    let operated = Operated::start(Setup::new().with("TESTD_SIDE", "127.0.0.1:0")).await;
    let ran = operated.run(&["verify"]).await;
    ran.assert_code(0);
    let web = operated.service.web.to_string();
    ran.assert_says(&["generation 1 passed at 2 addresses", "web", &web, "side"]);
    let (code, verified) = operated.json(&["verify"]).await;
    assert_eq!((code, &verified["reply"]), (0, &"verified".into()));
    let verification = &verified["verification"];
    let addresses = verification["addresses"].as_array().unwrap();
    assert_eq!(addresses.len(), 2, "{verified}");
    for address in addresses {
        assert_eq!(address["result"], "passed", "{verified}");
        assert_eq!(address["missed"], 0, "{verified}");
    }
    let ran = operated.run(&["status"]).await;
    ran.assert_says(&["verified    generation 1 passed at 2 addresses"]);
    operated.service.assert_serving(1).await;
}

#[tokio::test]
async fn verify_expects_whoever_has_the_accept_right() {
    let operated = Operated::start_with_a_bake().await;
    operated.run(&["upgrade", "--no-wait"]).await.assert_code(0);
    let baking = "event 1 Stage { successor: 2, stage: Baking";
    operated.service.line(baking).await;
    let (code, verified) = operated.json(&["verify"]).await;
    assert_eq!(code, 0, "{verified}");
    assert_eq!(verified["verification"]["generation"], 2);
    operated.run(&["rollback"]).await.assert_code(0);
    let (code, verified) = operated.json(&["verify"]).await;
    assert_eq!(code, 0, "{verified}");
    assert_eq!(verified["verification"]["generation"], 1);
}

#[tokio::test]
async fn verify_ends_with_4_where_nobody_accepts_and_says_where() {
    let setup = Setup::new();
    fs::write(setup.room.path().join("plan"), "deaf=yes").unwrap();
    let operated = Operated::start(setup).await;
    let ran = operated.run(&["verify"]).await;
    ran.assert_code(4);
    ran.assert_says(&["failed", "web", "nobody accepted a connection in time"]);
    let (code, verified) = operated.json(&["verify"]).await;
    let address = &verified["verification"]["addresses"][0];
    assert_eq!((code, &address["result"]), (4, &"failed".into()));
    assert!(address["missed"].as_u64().unwrap() > 0, "{verified}");
}

#[tokio::test]
async fn many_may_verify_at_once() {
    let operated = Operated::start_with_a_bake().await;
    operated.run(&["upgrade", "--no-wait"]).await.assert_code(0);
    let baking = "event 1 Stage { successor: 2, stage: Baking";
    operated.service.line(baking).await;
    let asked: Vec<_> = (0..8).map(|_| operated.begin(&["verify"])).collect();
    for one in asked {
        crate::operated::ended(one).await.assert_code(0);
    }
}
