/* Writes down what a power cut would spare: loaded before libc, it keeps a copy of each file as its last fsync found it,
 * and of each name that a rename or unlink takes away. Only below POWER_ROOT; into POWER_LOG, a folder on the same file
 * system. reliability/power.py reads it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int below_root(const char *path, char *full) {
    const char *root = getenv("POWER_ROOT");
    char parent[PATH_MAX], real[PATH_MAX];
    if (!root || !getenv("POWER_LOG") || strlen(path) >= PATH_MAX) return 0;
    strcpy(parent, path);
    char *slash = strrchr(parent, '/');
    const char *name = slash ? path + (slash - parent) + 1 : path;
    if (slash) *slash = 0;
    if (!realpath(slash ? (parent[0] ? parent : "/") : ".", real)) return 0;
    snprintf(full, PATH_MAX, "%s/%s", real, name);
    return !strncmp(full, root, strlen(root));
}

/* One line a time, whole: O_APPEND is atomic for processes of one machine. */
static void note(const char *kind, const char *first, const char *second, const char *kept) {
    char path[PATH_MAX], line[3 * PATH_MAX + 64];
    snprintf(path, sizeof path, "%s/operations", getenv("POWER_LOG"));
    int size = snprintf(line, sizeof line, "%s\t%s\t%s\t%s\n", kind, first, second, kept);
    int log = open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0644);
    if (log >= 0) {
        if (write(log, line, size) != size) abort();
        close(log);
    }
}

/* Keep what a name stands for, so that its loss can be undone. */
static void keep(const char *path, char *kept) {
    static unsigned counter;
    snprintf(kept, PATH_MAX, "%s/kept-%d-%u", getenv("POWER_LOG"), getpid(), __sync_fetch_and_add(&counter, 1));
    if (link(path, kept)) kept[0] = 0;
}

static void copy_durable(int from) {
    struct stat facts;
    char link_path[64], full[PATH_MAX], name[PATH_MAX], temporary[PATH_MAX];
    snprintf(link_path, sizeof link_path, "/proc/self/fd/%d", from);
    ssize_t length = readlink(link_path, full, sizeof full - 1);
    const char *root = getenv("POWER_ROOT");
    if (!root || !getenv("POWER_LOG") || length < 0 || fstat(from, &facts)) return;
    full[length] = 0;
    if (strncmp(full, root, strlen(root))) return;
    if (S_ISDIR(facts.st_mode)) {
        note("folder", full, "", "");
        return;
    }
    int source = open(link_path, O_RDONLY | O_CLOEXEC);
    snprintf(name, sizeof name, "%s/durable-%lu", getenv("POWER_LOG"), (unsigned long)facts.st_ino);
    snprintf(temporary, sizeof temporary, "%s/new-%d-%lu", getenv("POWER_LOG"), gettid(), (unsigned long)facts.st_ino);
    int target = open(temporary, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    if (source < 0 || target < 0) abort();
    char block[65536];
    for (ssize_t count; (count = read(source, block, sizeof block)) > 0;)
        if (write(target, block, count) != count) abort();
    close(source);
    close(target);
    int (*real)(const char *, const char *) = dlsym(RTLD_NEXT, "rename");
    real(temporary, name);
}

int fsync(int file) {
    int (*real)(int) = dlsym(RTLD_NEXT, "fsync");
    copy_durable(file);
    return real(file);
}

int fdatasync(int file) {
    int (*real)(int) = dlsym(RTLD_NEXT, "fdatasync");
    copy_durable(file);
    return real(file);
}

int rename(const char *from, const char *to) {
    int (*real)(const char *, const char *) = dlsym(RTLD_NEXT, "rename");
    char first[PATH_MAX], second[PATH_MAX], kept[PATH_MAX] = "";
    if (!below_root(to, second) || !below_root(from, first)) return real(from, to);
    keep(to, kept);
    int result = real(from, to);
    if (!result) note("rename", first, second, kept);
    return result;
}

int unlink(const char *path) {
    int (*real)(const char *) = dlsym(RTLD_NEXT, "unlink");
    char full[PATH_MAX], kept[PATH_MAX] = "";
    if (!below_root(path, full)) return real(path);
    keep(path, kept);
    int result = real(path);
    if (!result && kept[0]) note("unlink", full, "", kept);
    return result;
}
