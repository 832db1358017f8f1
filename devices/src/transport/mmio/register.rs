// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Offsets of the registers (virtio 1.3, 4.2.2).

/// "virt".
pub const MAGIC: u64 = 0x000;
/// Version of the transport: 2.
pub const VERSION: u64 = 0x004;
/// Device type.
pub const DEVICE_ID: u64 = 0x008;
/// Vendor of the device.
pub const VENDOR_ID: u64 = 0x00c;
/// Features offered, 32 bits of them.
pub const DEVICE_FEATURES: u64 = 0x010;
/// Which 32 bits.
pub const DEVICE_FEATURES_SEL: u64 = 0x014;
/// Features accepted, 32 bits of them.
pub const DRIVER_FEATURES: u64 = 0x020;
/// Which 32 bits.
pub const DRIVER_FEATURES_SEL: u64 = 0x024;
/// Queue that the registers below are about.
pub const QUEUE_SEL: u64 = 0x030;
/// Largest size of the queue, 0 if it does not exist.
pub const QUEUE_NUM_MAX: u64 = 0x034;
/// Size of the queue.
pub const QUEUE_NUM: u64 = 0x038;
/// Whether the queue is in use.
pub const QUEUE_READY: u64 = 0x044;
/// A queue has new buffers.
pub const QUEUE_NOTIFY: u64 = 0x050;
/// Why the interrupt.
pub const INTERRUPT_STATUS: u64 = 0x060;
/// Reasons that the driver has seen.
pub const INTERRUPT_ACK: u64 = 0x064;
/// Device status.
pub const STATUS: u64 = 0x070;
/// Descriptor table, low half.
pub const QUEUE_DESC_LOW: u64 = 0x080;
/// Descriptor table, high half.
pub const QUEUE_DESC_HIGH: u64 = 0x084;
/// Available ring, low half.
pub const QUEUE_DRIVER_LOW: u64 = 0x090;
/// Available ring, high half.
pub const QUEUE_DRIVER_HIGH: u64 = 0x094;
/// Used ring, low half.
pub const QUEUE_DEVICE_LOW: u64 = 0x0a0;
/// Used ring, high half.
pub const QUEUE_DEVICE_HIGH: u64 = 0x0a4;
/// Shared-memory region that the registers below are about.
pub const SHM_SEL: u64 = 0x0ac;
/// Its length, low half; all ones if the region does not exist.
pub const SHM_LEN_LOW: u64 = 0x0b0;
/// Its length, high half.
pub const SHM_LEN_HIGH: u64 = 0x0b4;
/// Its address, low half.
pub const SHM_BASE_LOW: u64 = 0x0b8;
/// Its address, high half.
pub const SHM_BASE_HIGH: u64 = 0x0bc;
/// Changes with the configuration.
pub const CONFIG_GENERATION: u64 = 0x0fc;
/// Where configuration space begins.
pub const CONFIG: u64 = 0x100;
