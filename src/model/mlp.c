/* The dense MLP: one expert that every token takes. */
#include "model/model_impl.h"

void st_mlp_run(st_model *m, const st_step *s, const st_layer *l)
{
    st_work *w = &m->work;
    st_act in = st_rows_act(&w->in, 0, s->n);
    w->experts[0] = st_mlp_job(&l->mlp, &in, s->n, &w->h, 0, w->branch);
    st_op_experts(m->ops, w->experts, 1);
}
