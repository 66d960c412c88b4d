//! A service that is asked all the time, and what its clients see of a rollout.

use std::time::Duration;

use handover_load::{Failure, Kind, Load, Mix, Report};
use serde_json::Value;
use tokio::process::Child;

use crate::operated::{Operated, Ran, ended};
use crate::support::{DEADLINE, Setup, more_answers};

/// Longer than any test: what ends it is something else.
pub(crate) const LONG: &str = "1h";

pub(crate) struct Loaded {
    pub(crate) operated: Operated,
    pub(crate) load: Load,
}

impl Loaded {
    /// Once there are enough answers to tell what is slow.
    pub(crate) async fn start(setup: Setup) -> Self {
        let mix = Mix::none()
            .with(Kind::Fresh, 8)
            .paced(Kind::Fresh, 60.0)
            .with(Kind::KeepAlive, 2);
        Self::with(setup, mix).await
    }

    pub(crate) async fn with(setup: Setup, mix: Mix) -> Self {
        let operated = Operated::start(setup).await;
        let load = Load::start(operated.service.web, mix);
        load.until_answers(1, 200, DEADLINE).await.unwrap();
        Self { operated, load }
    }

    /// In JSON, until the program ends.
    pub(crate) async fn upgrade(&self, plan: &[&str]) -> Ran {
        ended(self.begin(plan)).await
    }

    /// In JSON. Goes on while the test does something else.
    pub(crate) fn begin(&self, plan: &[&str]) -> Child {
        let command = [&["upgrade", "--json"], plan].concat();
        self.operated.begin(&command)
    }

    /// Why the last upgrade ended as it did.
    pub(crate) async fn explained(&self) -> Value {
        let (code, explained) = self.operated.json(&["explain"]).await;
        assert_eq!(code, 0, "{explained}");
        explained["upgrade"]["explanation"].clone()
    }

    /// Generation 1 serves everybody as if nothing had happened, and can be upgraded again. All the while nothing failed
    /// but what may.
    pub(crate) async fn stable_serves_alone(self, may_fail: impl Fn(&Report)) {
        more_answers(&self.load, 1).await;
        let service = &self.operated.service;
        service.assert_alone(service.pid()).await;
        service.heal();
        self.operated.run(&["upgrade"]).await.assert_code(0);
        more_answers(&self.load, 3).await;
        may_fail(&self.load.stop().await);
    }
}

/// A share of the connections, for as long as it takes.
pub(crate) fn canary_at(share: &str) -> Vec<&str> {
    let plan = [
        "--strategy",
        "canary",
        "--by",
        "connection",
        "--step-min",
        LONG,
        "--bake",
        LONG,
        "--steps",
    ];
    [&plan[..], &[share]].concat()
}

/// Flipped to at once, and then judged for as long as it takes.
pub(crate) const BAKE: [&str; 8] = [
    "--strategy",
    "blue-green",
    "--by",
    "connection",
    "--promotion",
    "automatic",
    "--bake",
    LONG,
];

pub(crate) fn assert_failed_only_as(report: &Report, failure: Failure) {
    for kind in &report.kinds {
        assert_eq!(kind.failed(), report.failed(kind.kind, failure), "{report}");
    }
}

/// A figure that a guard has read.
pub(crate) fn figure(explanation: &Value, guard: &str, figure: &str) -> f64 {
    let named = |list: &Value, key: &str, name: &str| {
        let mut all = list.as_array().unwrap().iter();
        all.find(|one| one[key] == name).unwrap().clone()
    };
    let reading = named(&explanation["guards"], "guard", guard);
    named(&reading["figures"], "name", figure)["value"]
        .as_f64()
        .unwrap()
}

/// When the first answer failed.
pub(crate) fn first_failure(report: &Report) -> Duration {
    report.samples.iter().map(|sample| sample.at).min().unwrap()
}
