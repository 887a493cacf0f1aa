/* SPDX-License-Identifier: Apache-2.0 */
/* What the processor can do, as Linux names it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The names with spaces around each; NULL where that cannot be said. To be freed. */
#if defined __aarch64__
#include <sys/auxv.h>
/* Bits of arch/arm64/include/uapi/asm/hwcap.h. An emulator answers with those of what it emulates; its /proc/cpuinfo may be the host's. */
static char *processor_flags(void) {
    static const struct {
        const char *name;
        unsigned long word;
        int bit;
    } known[] = {{"asimd", AT_HWCAP, 1},     {"crc32", AT_HWCAP, 7},     {"atomics", AT_HWCAP, 8}, {"fphp", AT_HWCAP, 9},
                 {"asimdhp", AT_HWCAP, 10},  {"asimdrdm", AT_HWCAP, 12}, {"lrcpc", AT_HWCAP, 15},  {"asimddp", AT_HWCAP, 20},
                 {"sve", AT_HWCAP, 22},      {"sve2", AT_HWCAP2, 1},     {"i8mm", AT_HWCAP2, 13},  {"bf16", AT_HWCAP2, 14}};
    char *const text = calloc(1, 512);
    for (size_t i = 0; text && i < sizeof known / sizeof *known; i++)
        if (getauxval(known[i].word) >> known[i].bit & 1) strcat(strcat(text, " "), known[i].name);
    return text ? strcat(text, " ") : NULL;
}
#else
static char *processor_flags(void) {
    char *line = NULL, *end;
    size_t room = 0;
    int found = 0;
    FILE *stream = fopen("/proc/cpuinfo", "r");
    while (stream && !found && getline(&line, &room, stream) > 0) found = !strncmp(line, "flags", 5);
    if (stream) fclose(stream);
    if (found && (end = strchr(line, '\n'))) *end = ' ';
    if (!found) free(line);
    return found ? line : NULL;
}
#endif

/* Whether a name of `length` characters is among them. */
static int has_flag(const char *flags, const char *name, size_t length) {
    for (const char *at = strchr(flags, ' '); at && at[1]; at = strchr(at + 1, ' '))
        if (!strncmp(at + 1, name, length) && at[1 + length] == ' ') return 1;
    return 0;
}
