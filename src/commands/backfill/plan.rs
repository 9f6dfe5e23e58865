use std::time::Duration;

use serde_json::Value;

use crate::output::output;

/// Prints what a dry run found, and an estimate of how long the work would take.
pub fn print(task: &Value, workers: &Value) {
    let backfill = &task["backfill"];
    let images = &backfill["images"];
    output!("  to look at  {}", images["walked"]);
    output!("  to work on  {}", images["planned"]);
    for (reason, count) in backfill["skipped"].as_object().into_iter().flatten() {
        output!("  {reason:<10}  {count}");
    }
    if backfill["kind"] == "gc" {
        let survey = &backfill["survey"];
        if survey.is_object() {
            output!(
                "  originals   {} of {}",
                survey["unreferenced_originals"],
                survey["originals"]
            );
            output!("  renditions  {}", survey["unreferenced_renditions"]);
        }
        if let Some(refusal) = survey["refusal"].as_str() {
            output!("  would be refused: {refusal}");
        }
        output!(
            "  which they are: safelight backfill report {}",
            task["id"].as_str().unwrap_or("ID")
        );
        return;
    }
    if images["failed"] != 0 {
        output!("  would fail  {}", images["failed"]);
    }
    match estimate(backfill, workers) {
        Some(time) => output!("  would take  about {}", humantime::format_duration(time)),
        None => output!("  would take  unknown: the workers have not done such jobs yet"),
    }
}

/// How long the work would take on the current workers, from the run times of such jobs so far and the
/// requested rate. `None` if no worker has done any.
fn estimate(backfill: &Value, workers: &Value) -> Option<Duration> {
    let kind = if backfill["kind"] == "verify" { "verify" } else { "thumbnail" };
    let running = workers["workers"].as_array()?.iter().filter(|w| w["status"] == "running");
    let (mut slots, mut ended, mut run_ms) = (0, 0, 0);
    for queue in running.flat_map(|worker| worker["slots"].as_array().into_iter().flatten()) {
        let number = |name: &str| queue[name].as_u64().unwrap_or(0);
        if queue["kind"] == kind {
            ended += number("ended");
            run_ms += number("run_ms");
            slots += if queue["lane"] == "bulk" { number("slots") } else { 0 };
        }
    }
    let slots = backfill["request"]["concurrency"].as_u64().map_or(slots, |n| n.min(slots));
    let planned = backfill["images"]["planned"].as_u64()?;
    if planned > 0 && (ended == 0 || slots == 0) {
        return None;
    }
    #[allow(clippy::cast_precision_loss)] // for people
    let (planned, each) = (planned as f64, run_ms as f64 / 1e3 / ended.max(1) as f64);
    #[allow(clippy::cast_precision_loss)]
    let by_slots = planned * each / slots.max(1) as f64;
    let by_rate = backfill["request"]["rate"].as_f64().map_or(0.0, |rate| planned / rate);
    Duration::try_from_secs_f64(by_slots.max(by_rate).round()).ok()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn plan_is_estimated_from_run_times_of_such_jobs() {
        let slots = |lane: &str, slots: u32, ended: u32, run_ms: u32| json!({ "kind": "thumbnail", "lane": lane, "slots": slots, "ended": ended, "run_ms": run_ms });
        let workers = |ended| {
            let slots = [slots("interactive", 4, ended, 50 * ended), slots("bulk", 3, 0, 0)];
            json!({ "workers": [{ "status": "running", "slots": slots }, { "status": "lost" }] })
        };
        let plan = |planned: u32, rate: Value| {
            let request = json!({ "rate": rate, "concurrency": null });
            json!({ "kind": "renditions", "images": { "planned": planned }, "request": request })
        };
        let seconds = Duration::from_secs;
        assert_eq!(estimate(&plan(6000, json!(null)), &workers(10)), Some(seconds(100)));
        assert_eq!(estimate(&plan(6000, json!(20.0)), &workers(10)), Some(seconds(300)));
        assert_eq!(estimate(&plan(6000, json!(null)), &workers(0)), None);
        assert_eq!(estimate(&plan(0, json!(null)), &workers(0)), Some(seconds(0)));
    }
}
