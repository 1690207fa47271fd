/* Gives root up (up_user.h). */
#include "cli/up_user.h"

#include <dirent.h>
#include <fcntl.h>
#include <grp.h>
#include <pwd.h>
#include <stdbool.h>
#include <stdio.h>
#include <unistd.h>

static char unreadable[4096];

/* As the effective user; of a folder all that is in it. */
static bool readable(const char *path)
{
    DIR *dir = opendir(path);
    if (!dir)
        return faccessat(AT_FDCWD, path, R_OK, AT_EACCESS) == 0;
    bool ok = true;
    for (struct dirent *e; ok && (e = readdir(dir));)
        ok = faccessat(dirfd(dir), e->d_name, R_OK, AT_EACCESS) == 0 || e->d_name[0] == '.';
    closedir(dir);
    return ok;
}

const char *st_up_drop_root(const char *const *files, size_t n)
{
    const struct passwd *nobody = geteuid() == 0 ? getpwnam("nobody") : NULL;
    if (!nobody)
        return NULL;
    /* The effective user first: that can be taken back. */
    unreadable[0] = '\0';
    if (setegid(nobody->pw_gid) || seteuid(nobody->pw_uid))
        snprintf(unreadable, sizeof unreadable, "a user's id");
    for (size_t i = 0; i < n && !unreadable[0]; i++)
        if (!readable(files[i]))
            snprintf(unreadable, sizeof unreadable, "%s", files[i]);
    if (seteuid(0) || setegid(0))
        _exit(1);
    if (unreadable[0])
        return unreadable;
    if (setgroups(0, NULL) || setgid(nobody->pw_gid) || setuid(nobody->pw_uid)) {
        /* A half of it would be worse than none. */
        fprintf(stderr, "starling up: root cannot be given up\n");
        _exit(1);
    }
    return NULL;
}
