/* starling: one binary, several commands. */
#include <stdio.h>
#include <string.h>

#include "cli/commands.h"
#include "cli/options.h"
#include "starling/version.h"

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *about;
} commands[] = {
    {"run", st_cmd_run, "chat in the terminal"},
    {"serve", st_cmd_serve, "serve a model over OpenAI's API"},
    {"up", st_cmd_up, "serve a model by the whole stack: gateway and engines"},
    {"bench", st_cmd_bench, "measure the machine, the kernels and a model"},
    {"load", st_cmd_load, "measure a server: many streams at once"},
    {"inspect", st_cmd_inspect, "print what was understood of a checkpoint"},
    {"logits", st_cmd_logits, "write the logits of token ids"},
    {"template", st_cmd_template, "render a conversation with the chat template"},
    {"tokenize", st_cmd_tokenize, "turn text into token ids and back"},
    {NULL, NULL, NULL},
};

static void usage(FILE *to)
{
    fprintf(to,
            "starling %s: serves large Mixture-of-Experts language models\n\n"
            "usage: starling COMMAND [MODEL] [options]\n\ncommands:\n",
            ST_VERSION);
    for (size_t i = 0; commands[i].name; i++)
        fprintf(to, "  %-10s %s\n", commands[i].name, commands[i].about);
    fprintf(to,
            "\nMODEL is a Hugging Face checkpoint folder; without it the built-in lexicon model "
            "is used.\nstarling COMMAND --help explains a command.\n\n"
            "examples:\n"
            "  starling run -p \"What does courage mean?\"\n"
            "  starling serve /models/Qwen3-30B-A3B --port 8000\n"
            "  starling inspect /models/Qwen3-30B-A3B\n\n"
            "environment:\n"
            "  STARLING_CPU       kernels to use: ref, avx2, avx512, avx512vnni; on ARM neon, "
            "neondot\n                     (else the best the processor has)\n"
            "  STARLING_LEXICON   folder of the built-in model, should it have moved\n"
            "  STARLING_API_KEY   more keys for serve\n");
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        usage(stderr);
        return ST_EXIT_USAGE;
    }
    const char *name = argv[1];
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0 || strcmp(name, "help") == 0) {
        usage(stdout);
        return ST_EXIT_OK;
    }
    if (strcmp(name, "--version") == 0 || strcmp(name, "version") == 0) {
        printf("starling %s\n", ST_VERSION);
        return ST_EXIT_OK;
    }
    for (size_t i = 0; commands[i].name; i++)
        if (strcmp(name, commands[i].name) == 0)
            return commands[i].run(argc - 1, argv + 1);
    fprintf(stderr, "starling: there is no command '%s'; `starling help` lists them\n", name);
    return ST_EXIT_USAGE;
}
