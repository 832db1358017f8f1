/* SPDX-License-Identifier: ((GPL-2.0 WITH Linux-syscall-note) OR BSD-3-Clause) */
/*
 * Moving the guest memory behind a virtio-gpu resource: the wire format that
 * driver (patches/0007, 0017) and device share. All fields are little-endian.
 *
 * Rules for the device:
 *  - The command is processed in the order of the control queue, like any
 *    other command: those before it use the old pages, those after it the new.
 *  - It names resources with guest backing only: those of RESOURCE_CREATE_2D
 *    with a backing attached, and blobs of VIRTIO_GPU_BLOB_MEM_GUEST. @offset
 *    counts from the start of the backing, as if its entries were laid end to
 *    end; a page of a longer backing entry splits that entry.
 *  - For each entry it copies the VIRTIO_GPU_MIGRATE_PAGE_SIZE bytes that the
 *    backing has at @offset to @addr and makes @addr the backing there. It
 *    stops its own readers and writers of the old page first: the driver has
 *    only kept the guest's CPUs away from it.
 *  - VIRTIO_GPU_RESP_OK_NODATA promises that the old pages will never be
 *    touched again. The driver frees them on that word alone.
 *  - Any other answer promises that nothing has changed: every @addr is
 *    forgotten, though it may have been written to. INVALID_RESOURCE_ID for a
 *    resource that is not there or has no guest backing; INVALID_PARAMETER for
 *    @nr_entries of 0 or over VIRTIO_GPU_MIGRATE_MAX_ENTRIES, an @offset or
 *    @addr that is not page-aligned, outside the backing or outside RAM, and
 *    for an @offset named twice.
 *  - It may be a scanout at that moment; the picture must not change.
 *
 * MIGRATE_PAGES does the same for pages of several resources: the entries of
 * one resource are carried out together or not at all, independently of those
 * of other resources, and the answer has one byte for each entry.
 */
#ifndef BALLAST_GPU_H
#define BALLAST_GPU_H

#include <linux/types.h>

/* Feature bit: the device understands RESOURCE_MIGRATE_BACKING. */
#define VIRTIO_GPU_F_MIGRATE			56

/* Feature bit: and MIGRATE_PAGES. Not offered without VIRTIO_GPU_F_MIGRATE. */
#define VIRTIO_GPU_F_MIGRATE_PAGES		57

/* Control queue; answered by VIRTIO_GPU_RESP_OK_NODATA or an error. */
#define VIRTIO_GPU_CMD_RESOURCE_MIGRATE_BACKING	0x01f0

/* Bytes that one entry moves, whatever the guest's own page size. */
#define VIRTIO_GPU_MIGRATE_PAGE_SIZE		4096

/* Most entries of one command; a driver sends 1 to this many. */
#define VIRTIO_GPU_MIGRATE_MAX_ENTRIES		512

struct virtio_gpu_migrate_entry {
	__le64 offset;		/* bytes from the start of the backing */
	__le64 addr;		/* guest-physical address of the new page */
};

struct virtio_gpu_resource_migrate_backing {
	/* struct virtio_gpu_ctrl_hdr hdr, 24 bytes, comes first */
	__le32 resource_id;
	__le32 nr_entries;
	/* struct virtio_gpu_migrate_entry entries[nr_entries] follow */
};

/*
 * Control queue; answered by VIRTIO_GPU_RESP_OK_MIGRATE_PAGES, or by an error
 * if @nr_entries is 0 or over VIRTIO_GPU_MIGRATE_MAX_ENTRIES: nothing has
 * changed then. The driver's buffer has room for the whole answer.
 */
#define VIRTIO_GPU_CMD_MIGRATE_PAGES		0x01f1

struct virtio_gpu_migrate_page {
	__le32 resource_id;
	__le32 padding;
	__le64 offset;		/* bytes from the start of the backing */
	__le64 addr;		/* guest-physical address of the new page */
};

struct virtio_gpu_migrate_pages {
	/* struct virtio_gpu_ctrl_hdr hdr, 24 bytes, comes first */
	__le32 nr_entries;
	__le32 padding;
	/* struct virtio_gpu_migrate_page entries[nr_entries] follow */
};

/* struct virtio_gpu_ctrl_hdr, then __u8 status[nr_entries] */
#define VIRTIO_GPU_RESP_OK_MIGRATE_PAGES	0x11f1
#define VIRTIO_GPU_MIGRATE_MOVED		0
#define VIRTIO_GPU_MIGRATE_REFUSED		1

#endif /* BALLAST_GPU_H */
