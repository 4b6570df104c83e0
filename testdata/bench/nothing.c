//go:build ignore

/*
 * A FUSE server that does nothing: the least that any server costs. Descriptor 3 is /dev/fuse, mounted. Every name is a
 * file that reads as a line and takes whatever is written. With an argument the kernel passes reads and writes
 * through to that file, since Linux 6.9.
 */
#define _GNU_SOURCE /* O_PATH */
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

/* Later than some libc's headers. */
#define PASSTHROUGH_FLAG2 (1 << (37 - 32)) /* FUSE_PASSTHROUGH in init_out.flags2 */
#define OPEN_PASSTHROUGH (1 << 7)          /* FOPEN_PASSTHROUGH */
#ifndef FUSE_INIT_EXT
#define FUSE_INIT_EXT (1 << 30)
#endif
#ifndef FOPEN_NOFLUSH
#define FOPEN_NOFLUSH (1 << 5)
#endif
struct backing { int fd; unsigned flags; unsigned long long padding; };
#define BACKING_OPEN _IOW(229, 1, struct backing)

static const char line[] = "uts ipc net\n";
static char in[1 << 20];
static struct { struct fuse_out_header h; char body[4096]; } out;

static void attributes(struct fuse_attr *a, unsigned long long node)
{
	a->ino = node;
	a->mode = node == 1 ? S_IFDIR | 0755 : S_IFREG | 0644;
	a->nlink = node == 1 ? 2 : 1;
}

int main(int argc, char **argv)
{
	struct fuse_in_header *h = (void *)in;
	void *arg = in + sizeof *h;
	int id = 0, passes = 0;

	for (;;) {
		ssize_t n = read(3, in, sizeof in);
		size_t size = 0;
		int error = 0;

		if (n < 0 && (errno == EINTR || errno == ENOENT))
			continue;
		if (n < 0)
			return errno != ENODEV;
		memset(&out, 0, sizeof out.h + sizeof(struct fuse_entry_out));
		switch (h->opcode) {
		case FUSE_INIT: {
			struct fuse_init_in *i = arg;
			struct fuse_init_out *o = (void *)out.body;

			memset(o, 0, sizeof *o);
			o->major = 7;
			o->minor = 40;
			o->max_readahead = i->max_readahead;
			o->flags = i->flags & (FUSE_ATOMIC_O_TRUNC | FUSE_BIG_WRITES | FUSE_MAX_PAGES | FUSE_INIT_EXT | FUSE_PARALLEL_DIROPS);
			o->max_write = 128 << 10;
			o->max_pages = 32;
			o->max_background = 12;
			if (argc > 1 && i->minor >= 40) {
				passes = 1;
				o->flags2 = PASSTHROUGH_FLAG2;
				(&o->flags2)[1] = 1; /* max_stack_depth */
			}
			size = sizeof *o;
			break;
		}
		case FUSE_LOOKUP: {
			struct fuse_entry_out *o = (void *)out.body;

			o->nodeid = 2;
			o->entry_valid = o->attr_valid = 3600;
			attributes(&o->attr, 2);
			size = sizeof *o;
			break;
		}
		case FUSE_GETATTR:
		case FUSE_SETATTR: {
			struct fuse_attr_out *o = (void *)out.body;

			o->attr_valid = 3600;
			attributes(&o->attr, h->nodeid);
			size = sizeof *o;
			break;
		}
		case FUSE_OPEN: {
			struct fuse_open_out *o = (void *)out.body;

			if (passes && !id) {
				struct backing b = { .fd = open(argv[1], O_PATH) };

				id = ioctl(3, BACKING_OPEN, &b);
				if (id <= 0) {
					perror("passthrough");
					passes = 0;
				}
			}
			o->open_flags = FOPEN_NOFLUSH | (passes ? OPEN_PASSTHROUGH : FOPEN_DIRECT_IO | FOPEN_PARALLEL_DIRECT_WRITES);
			if (passes)
				((int *)o)[3] = id; /* backing_id */
			size = sizeof *o;
			break;
		}
		case FUSE_READ: {
			struct fuse_read_in *i = arg;

			if (i->offset == 0)
				size = sizeof line - 1;
			memcpy(out.body, line, size);
			break;
		}
		case FUSE_WRITE: {
			struct fuse_write_out *o = (void *)out.body;

			o->size = ((struct fuse_write_in *)arg)->size;
			size = sizeof *o;
			break;
		}
		case FUSE_RELEASE:
		case FUSE_OPENDIR:
		case FUSE_RELEASEDIR:
			size = h->opcode == FUSE_OPENDIR ? sizeof(struct fuse_open_out) : 0;
			break;
		case FUSE_FORGET:
		case FUSE_BATCH_FORGET:
		case FUSE_INTERRUPT:
			continue;
		default:
			error = -ENOSYS;
		}
		out.h.len = sizeof out.h + size;
		out.h.error = error;
		out.h.unique = h->unique;
		if (write(3, &out, out.h.len) < 0 && errno != ENOENT)
			perror("answer");
	}
}
