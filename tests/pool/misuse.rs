//! Pools that cannot be, which say why with exit code 1 and leave nothing behind.

use std::net::TcpListener;

use crate::operated::{Ran, program, run};
use crate::support::free_address;

async fn refused(arguments: &[&str]) -> Ran {
    let ran = run(program(&[&["run"], arguments].concat())).await;
    ran.assert_code(1);
    ran
}

#[tokio::test]
async fn a_pool_that_cannot_be_started_says_why() {
    let none = refused(&["--", "/no/such/program"]).await;
    none.assert_says(&["/no/such/program", "No such file"]);
    let nobody = refused(&["--workers", "0", "--", "true"]).await;
    nobody.assert_says(&["a pool has 1 to 4096 workers"]);
    let stuck = refused(&["--surge", "0", "--", "true"]).await;
    stuck.assert_says(&["nobody could be replaced"]);
    let late = refused(&["--min-healthy", "2m", "--", "true"]).await;
    late.assert_says(&["min_healthy (120s) must be shorter than healthy_deadline (60s)"]);
    refused(&["--listen", "8080", "--", "true"])
        .await
        .assert_says(&["a name and an address"]);
    refused(&["--ready", "soon", "--", "true"])
        .await
        .assert_says(&["notify, accepts or a time"]);
}

#[tokio::test]
async fn an_address_that_somebody_else_has_is_an_error() {
    let address = free_address();
    let _holder = TcpListener::bind(address).unwrap();
    let listen = format!("web={address}");
    let taken = refused(&["--listen", &listen, "--", "true"]).await;
    taken.assert_says(&["web", "in use"]);
}
