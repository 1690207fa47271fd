/* The subcommands: each gets argv with its own name as argv[0] and returns the exit code. */
#ifndef ST_CLI_COMMANDS_H
#define ST_CLI_COMMANDS_H

int st_cmd_serve(int argc, char **argv);
int st_cmd_up(int argc, char **argv);
int st_cmd_run(int argc, char **argv);
int st_cmd_bench(int argc, char **argv);
int st_cmd_load(int argc, char **argv);
int st_cmd_logits(int argc, char **argv);
int st_cmd_tokenize(int argc, char **argv);
int st_cmd_template(int argc, char **argv);
int st_cmd_inspect(int argc, char **argv);

#endif
