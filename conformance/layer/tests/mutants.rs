//! The layer between hosts and guests with one defect each, of which it must find these by their own rules, with traffic
//! and without any other check. `pxg-conformance selftest [--hosts] --layer libpxg_layer.so` tells it of all mutants.

use std::path::PathBuf;
use std::sync::OnceLock;

use proxy_golang_conformance::parts::Layered;

/// The layer that cargo built for this test.
fn layer() -> PathBuf {
    let exe = std::env::current_exe().unwrap();
    exe.ancestors()
        .skip(1)
        .take(2)
        .map(|d| d.join("libpxg_layer.so"))
        .find(|p| p.exists())
        .unwrap_or_else(|| panic!("no libpxg_layer.so beside {}", exe.display()))
}

fn layered() -> &'static Layered {
    static BUILT: OnceLock<(tempfile::TempDir, Layered)> = OnceLock::new();
    &BUILT
        .get_or_init(|| {
            let dir = tempfile::tempdir().unwrap();
            let built = Layered::new(&layer(), dir.path()).unwrap();
            (dir, built)
        })
        .1
}

macro_rules! found {
    ($($side:ident $test:ident $name:literal $rule:literal)*) => {
        $(
            #[test]
            fn $test() {
                let found = layered().$side($name).unwrap();
                assert!(found.contains($rule), "{}: {} is not in {found:?}", $name, $rule);
            }
        )*
    };
}

found! {
    host an_event_of_a_direction_that_pends "events-while-pending" "PXG-EVT-003"
    host an_end_that_comes_twice "stream-end-twice" "PXG-EVT-006"
    host a_configuration_dropped_twice "config-dropped-twice" "PXG-CFG-005"
    host a_buffer_released_twice "owned-released-twice" "PXG-MEM-006"
    host a_view_that_changes "view-changes-during-the-call" "PXG-MEM-001"
    host borrowed_memory_read_late "borrowed-read-after-the-next-call" "PXG-MEM-003"
    host a_hook_inside_a_host_function "hook-inside-a-host-function" "PXG-EVT-005"
    host a_completion_of_a_token_that_has_ended "stale-complete-is-ok" "PXG-ASY-002"
    guest a_header_read_late "late-read" "PXG-MEM-002"
    guest a_view_that_is_written_to "writes-view" "PXG-MEM-009"
    guest an_action_that_is_left_unset "unset-action" "PXG-ACT-001"
    guest a_result_cleared_beyond_its_end "writes-past-result" "PXG-ABI-004"
    guest pending_in_a_phase_that_was_not_declared "pends-undeclared" "PXG-ACT-006"
    guest a_field_that_the_host_owns "sets-content-length" "PXG-HDR-008"
    guest completed_and_continued "completes-and-continues" "PXG-ASY-005"
    guest release_that_calls_the_host "release-calls" "PXG-MEM-007"
}
