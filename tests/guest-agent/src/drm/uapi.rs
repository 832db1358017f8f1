// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The requests of `drm/drm.h`, `drm/drm_mode.h` and `drm/virtgpu_drm.h` that the tests use.

use libc::{Ioctl, c_ulong};

/// Direction and size of a request that the kernel reads and writes.
const READ_WRITE: c_ulong = 3 << 30;
/// Of one that it only reads.
const WRITE: c_ulong = 1 << 30;
/// `DRM_IOCTL_BASE`, in its place.
const DRM: c_ulong = (b'd' as c_ulong) << 8;

const fn request<T>(direction: c_ulong, number: c_ulong) -> Ioctl {
    (direction | (size_of::<T>() as c_ulong) << 16 | DRM | number) as Ioctl
}

/// These two take no argument.
pub(super) const SET_MASTER: Ioctl = (DRM | 0x1e) as Ioctl;
pub(super) const DROP_MASTER: Ioctl = (DRM | 0x1f) as Ioctl;
pub(super) const GEM_CLOSE: Ioctl = request::<GemClose>(WRITE, 0x09);
pub(super) const PRIME_HANDLE_TO_FD: Ioctl = request::<PrimeHandle>(READ_WRITE, 0x2d);
pub(super) const PRIME_FD_TO_HANDLE: Ioctl = request::<PrimeHandle>(READ_WRITE, 0x2e);
pub(super) const VIRTGPU_MAP: Ioctl = request::<VirtgpuMap>(READ_WRITE, 0x41);
pub(super) const VIRTGPU_CREATE_BLOB: Ioctl = request::<VirtgpuCreateBlob>(READ_WRITE, 0x4a);
pub(super) const GET_RESOURCES: Ioctl = request::<CardResources>(READ_WRITE, 0xa0);
pub(super) const SET_CRTC: Ioctl = request::<Crtc>(READ_WRITE, 0xa2);
pub(super) const GET_CONNECTOR: Ioctl = request::<Connector>(READ_WRITE, 0xa7);
pub(super) const ADD_FB: Ioctl = request::<Framebuffer>(READ_WRITE, 0xae);
pub(super) const REMOVE_FB: Ioctl = request::<u32>(READ_WRITE, 0xaf);
pub(super) const PAGE_FLIP: Ioctl = request::<PageFlip>(READ_WRITE, 0xb0);
pub(super) const DIRTY_FB: Ioctl = request::<DirtyFb>(READ_WRITE, 0xb1);
pub(super) const CREATE_DUMB: Ioctl = request::<CreateDumb>(READ_WRITE, 0xb2);
pub(super) const MAP_DUMB: Ioctl = request::<MapDumb>(READ_WRITE, 0xb3);

/// `VIRTGPU_BLOB_MEM_GUEST`.
pub(super) const BLOB_MEM_GUEST: u32 = 1;
/// `VIRTGPU_BLOB_FLAG_USE_MAPPABLE`.
pub(super) const BLOB_FLAG_MAPPABLE: u32 = 1;
/// `DRM_MODE_CONNECTED`.
pub(super) const CONNECTED: u32 = 1;

#[repr(C)]
#[derive(Default)]
pub(super) struct GemClose {
    pub(super) handle: u32,
    pub(super) pad: u32,
}

#[repr(C)]
#[derive(Default)]
pub(super) struct PrimeHandle {
    pub(super) handle: u32,
    pub(super) flags: u32,
    pub(super) fd: i32,
}

#[repr(C)]
#[derive(Default)]
pub(super) struct VirtgpuMap {
    pub(super) offset: u64,
    pub(super) handle: u32,
    pub(super) pad: u32,
}

#[repr(C)]
#[derive(Default)]
pub(super) struct VirtgpuCreateBlob {
    pub(super) blob_mem: u32,
    pub(super) blob_flags: u32,
    pub(super) bo_handle: u32,
    pub(super) res_handle: u32,
    pub(super) size: u64,
    pub(super) pad: u32,
    pub(super) cmd_size: u32,
    pub(super) cmd: u64,
    pub(super) blob_id: u64,
}

#[repr(C)]
#[derive(Default)]
pub(super) struct CardResources {
    pub(super) fb_ids: u64,
    pub(super) crtc_ids: u64,
    pub(super) connector_ids: u64,
    pub(super) encoder_ids: u64,
    pub(super) fbs: u32,
    pub(super) crtcs: u32,
    pub(super) connectors: u32,
    pub(super) encoders: u32,
    pub(super) min_width: u32,
    pub(super) max_width: u32,
    pub(super) min_height: u32,
    pub(super) max_height: u32,
}

#[repr(C)]
#[derive(Default, Clone, Copy)]
pub(super) struct Mode {
    pub(super) clock: u32,
    pub(super) hdisplay: u16,
    pub(super) hsync_start: u16,
    pub(super) hsync_end: u16,
    pub(super) htotal: u16,
    pub(super) hskew: u16,
    pub(super) vdisplay: u16,
    pub(super) vsync_start: u16,
    pub(super) vsync_end: u16,
    pub(super) vtotal: u16,
    pub(super) vscan: u16,
    pub(super) vrefresh: u32,
    pub(super) flags: u32,
    pub(super) kind: u32,
    pub(super) name: [u8; 32],
}

#[repr(C)]
#[derive(Default)]
pub(super) struct Crtc {
    pub(super) set_connectors: u64,
    pub(super) connectors: u32,
    pub(super) crtc_id: u32,
    pub(super) fb_id: u32,
    pub(super) x: u32,
    pub(super) y: u32,
    pub(super) gamma_size: u32,
    pub(super) mode_valid: u32,
    pub(super) mode: Mode,
}

#[repr(C)]
#[derive(Default)]
pub(super) struct Connector {
    pub(super) encoder_ids: u64,
    pub(super) mode_ids: u64,
    pub(super) property_ids: u64,
    pub(super) property_values: u64,
    pub(super) modes: u32,
    pub(super) properties: u32,
    pub(super) encoders: u32,
    pub(super) encoder_id: u32,
    pub(super) connector_id: u32,
    pub(super) connector_type: u32,
    pub(super) connector_type_id: u32,
    pub(super) connection: u32,
    pub(super) mm_width: u32,
    pub(super) mm_height: u32,
    pub(super) subpixel: u32,
    pub(super) pad: u32,
}

#[repr(C)]
#[derive(Default)]
pub(super) struct Framebuffer {
    pub(super) fb_id: u32,
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) pitch: u32,
    pub(super) bpp: u32,
    pub(super) depth: u32,
    pub(super) handle: u32,
}

#[repr(C)]
#[derive(Default)]
pub(super) struct PageFlip {
    pub(super) crtc_id: u32,
    pub(super) fb_id: u32,
    pub(super) flags: u32,
    pub(super) reserved: u32,
    pub(super) user_data: u64,
}

#[repr(C)]
#[derive(Default)]
pub(super) struct DirtyFb {
    pub(super) fb_id: u32,
    pub(super) flags: u32,
    pub(super) color: u32,
    pub(super) clips: u32,
    pub(super) clips_ptr: u64,
}

#[repr(C)]
#[derive(Default)]
pub(super) struct CreateDumb {
    pub(super) height: u32,
    pub(super) width: u32,
    pub(super) bpp: u32,
    pub(super) flags: u32,
    pub(super) handle: u32,
    pub(super) pitch: u32,
    pub(super) size: u64,
}

#[repr(C)]
#[derive(Default)]
pub(super) struct MapDumb {
    pub(super) handle: u32,
    pub(super) pad: u32,
    pub(super) offset: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `strace -e raw=ioctl` shows them of any DRM client.
    #[test]
    fn request_numbers_are_the_kernels() {
        assert_eq!(GEM_CLOSE as u32, 0x4008_6409);
        assert_eq!(CREATE_DUMB as u32, 0xc020_64b2);
        assert_eq!(MAP_DUMB as u32, 0xc010_64b3);
        assert_eq!(GET_RESOURCES as u32, 0xc040_64a0);
        assert_eq!(GET_CONNECTOR as u32, 0xc050_64a7);
        assert_eq!(SET_CRTC as u32, 0xc068_64a2);
        assert_eq!(ADD_FB as u32, 0xc01c_64ae);
        assert_eq!(PAGE_FLIP as u32, 0xc018_64b0);
        assert_eq!(DIRTY_FB as u32, 0xc018_64b1);
        assert_eq!(PRIME_HANDLE_TO_FD as u32, 0xc00c_642d);
        assert_eq!(PRIME_FD_TO_HANDLE as u32, 0xc00c_642e);
        assert_eq!(VIRTGPU_MAP as u32, 0xc010_6441);
        assert_eq!(VIRTGPU_CREATE_BLOB as u32, 0xc030_644a);
    }
}
