// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Registers that the guest reads without an exit: the same as those that it would read with one.
//! `MockDriver` compares each register that it reads; here is what it does not read.

use super::*;

fn rig() -> Rig {
    Rig::over(Recorder { publishes: true, config: *b"ABCDEFGH", ..Recorder::default() })
}

/// All words of the page, read both ways.
fn assert_same(rig: &Rig) {
    let transport = rig.driver.transport();
    let page = transport.page().expect("the device publishes its configuration");
    for offset in (0..0x1000).step_by(4) {
        let mut word = [0; 4];
        transport.read(offset, &mut word);
        assert_eq!(page.read(offset), u32::from_le_bytes(word), "{offset:#x}");
    }
}

#[test]
fn a_page_has_what_exits_would_read() {
    let mut rig = rig();
    assert_same(&rig);
    rig.driver.write(reg::DEVICE_FEATURES_SEL, 1);
    rig.driver.write(reg::SHM_SEL, 3);
    assert_same(&rig);
    rig.driver.probe(VERSION_1, 2);
    assert_same(&rig);
    rig.driver.set_config(4, 0x1234_5678);
    assert_same(&rig);
    let interrupt = rig.device.lock().interrupt.clone().unwrap();
    interrupt.signal_used_queue(0).unwrap();
    assert_same(&rig);
    assert_eq!(rig.driver.acknowledge(), 1);
    rig.device.lock().fail = true;
    rig.driver.notify(0);
    rig.driver.run();
    assert!(rig.driver.needs_reset());
    assert_same(&rig);
    rig.driver.reset();
    assert_same(&rig);
}

#[test]
fn a_change_is_in_the_page_before_its_interrupt() {
    let mut rig = rig();
    rig.driver.probe(VERSION_1, 2);
    let page = |offset| rig.driver.transport().page().unwrap().read(offset);
    let generation = page(reg::CONFIG_GENERATION);
    let mut device = rig.device.lock();
    device.config = *b"abcdefgh";
    let interrupt = device.interrupt.clone().unwrap();
    interrupt.publish_config(&device.config);
    drop(device);
    assert_eq!(page(reg::CONFIG), u32::from_le_bytes(*b"abcd"));
    assert_ne!(page(reg::CONFIG_GENERATION), generation);
    assert_eq!(rig.driver.interrupts(), 0);
    assert_same(&rig);
}

#[test]
fn a_device_whose_configuration_depends_on_the_moment_has_none() {
    assert!(Rig::new().driver.transport().page().is_none());
}
