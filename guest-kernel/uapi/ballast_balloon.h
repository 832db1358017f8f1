/* SPDX-License-Identifier: ((GPL-2.0 WITH Linux-syscall-note) OR BSD-3-Clause) */
/*
 * Extensions of the virtio balloon: whole blocks, evacuation on request, statistics of CMA.
 *
 * The text that goes with these definitions is docs/virtio-extensions.md; the device's side of them
 * is devices/src/balloon/protocol.rs. All fields are little-endian and naturally aligned.
 */
#ifndef BALLAST_BALLOON_H
#define BALLAST_BALLOON_H

#include <linux/types.h>

/* Feature bits. EVACUATE requires BLOCKS, CMA_STATS requires STATS_VQ. */
#define VIRTIO_BALLOON_F_BLOCKS		56	/* Whole blocks, on a queue of their own */
#define VIRTIO_BALLOON_F_EVACUATE	57	/* Blocks vacated when the device asks */
#define VIRTIO_BALLOON_F_CMA_STATS	58	/* Statistics have the tags S_CMA_* */

/*
 * Queues are numbered as ever: only those of accepted features, without gaps, in this order:
 * inflate, deflate, stats, free page hints, reporting, blocks, evacuation.
 */

/* Configuration space behind poison_val; there if and only if BLOCKS is offered. */
#define VIRTIO_BALLOON_CONFIG_BLOCK_PAGES	16	/* __le32: 4 KiB pages in a block: 512 */
#define VIRTIO_BALLOON_CONFIG_BLOCK_MAX		20	/* __le32: blocks in one request, at most */

/*
 * Block queue. The driver's buffer, readable part: this header, then count entries
 * __le64 start_pfn, each a multiple of block_pages, in units of 4 KiB;
 * writable part: __le32 status.
 */
struct virtio_balloon_blocks_hdr {
	__le32 op;
	__le32 count;
};

#define VIRTIO_BALLOON_BLOCKS_INFLATE	1	/* the blocks are the device's now */
#define VIRTIO_BALLOON_BLOCKS_DEFLATE	2	/* the driver wants them back */

/* What the device answers. Anything but OK means that nothing was done. */
#define VIRTIO_BALLOON_BLOCKS_S_OK	0
#define VIRTIO_BALLOON_BLOCKS_S_REQUEST	1	/* unknown op, count of 0 or too large, buffer too short */
#define VIRTIO_BALLOON_BLOCKS_S_BLOCK	2	/* a block misaligned, not all RAM, or named twice */
#define VIRTIO_BALLOON_BLOCKS_S_STATE	3	/* inflate: a page is in the balloon already;
						 * deflate: a page is not in it */

/*
 * Evacuation queue. The driver keeps one buffer posted. Its readable part answers the request
 * before (at first: nothing, or an answer with id 0); its writable part is where the device puts
 * the next request, when it has one.
 */
struct virtio_balloon_evac_req {
	__le64 id;		/* never 0 */
	__le64 start_pfn;	/* a multiple of block_pages */
	__le32 nr_blocks;	/* 1 to block_max */
	__le32 flags;
};

#define VIRTIO_BALLOON_EVAC_F_SYNC	(1U << 0)	/* wait for what is busy now, within reason */

/* Followed by nr_blocks bytes, VIRTIO_BALLOON_EVAC_B_*, in the order of the request. */
struct virtio_balloon_evac_resp {
	__le64 id;		/* of the request; 0: this is no answer */
	__le32 vacated;		/* number of B_VACATED below */
	__le32 busy;		/* number of B_BUSY below */
	__le64 migrated_lru;	/* pages moved for this request, by their owner */
	__le64 migrated_balloon;
	__le64 migrated_zsmalloc;
	__le64 migrated_gpu;
};

#define VIRTIO_BALLOON_EVAC_B_VACATED	0	/* in the balloon, by a request on the block queue that
						 * the device has answered before */
#define VIRTIO_BALLOON_EVAC_B_BUSY	1	/* holds pages that cannot move; nothing is given up */
#define VIRTIO_BALLOON_EVAC_B_NOT_RAM	2	/* no memory that the driver could move */

/* Tags of statistics, with CMA_STATS; away from where the standard's go on. All in bytes. */
#define VIRTIO_BALLOON_S_CMA_TOTAL	0xb000	/* size of all CMA regions */
#define VIRTIO_BALLOON_S_CMA_FREE	0xb001	/* free pages of it */
#define VIRTIO_BALLOON_S_CMA_ALLOCATED	0xb002	/* what devices have of it */

#endif /* BALLAST_BALLOON_H */
