r"""Enumeration oracle for the hybrid model: p(x), L_K and expected gradients as sums over all bits.

float64 and straight from the definitions: Bernoulli probabilities are multiplied as p or 1 - p, the prior is
the normalized joint table of both layers, and expectations over K samples are sums over all K-tuples.
Gradients of what is summed come from autograd through the sums. Nothing here comes from latentbits.
In shapes, V = 2^M states of the latent bits.
"""

import itertools

import torch


def states(n):
    """All states of n bits, with shape (2^n, n)."""
    return torch.tensor(list(itertools.product((0.0, 1.0), repeat=n)), dtype=torch.float64)


def bernoulli_table(logits, bits):
    """Probability of each row of bits (S, n) under each row of logits (R, n), with shape (R, S)."""
    p = 1 / (1 + torch.exp(-logits))[:, None, :]
    return torch.where(bits[None] > 0.5, p, 1 - p).prod(-1)


def prior_table(W, b, c):
    """p(z) of an RBM by its joint table, with shape (V,)."""
    z, h = states(len(b)), states(len(c))
    joint = torch.exp((z @ b)[:, None] + (h @ c)[None] + z @ W @ h.T)
    return joint.sum(1) / joint.sum()


class Tables:
    """Every probability of a small hybrid model at data x (B, D): q(z|x) (B, V), p(x|z) (B, V), p(z) (V,)."""

    def __init__(self, encoder, decoder, prior, x):
        self.z = states(len(prior[1]))
        self.q = bernoulli_table(encoder(x), self.z)
        self.likelihood = bernoulli_table(decoder(self.z), x).T
        self.prior = prior_table(*prior)

    def weights(self):
        """w(z) = p(x, z) / q(z|x), with shape (B, V)."""
        return self.likelihood * self.prior / self.q

    def log_prob(self):
        """log p(x), with shape (B,)."""
        return (self.likelihood * self.prior).sum(1).log()

    def tuples(self, K):
        """Indices of all K-tuples of states, with shape (V^K, K)."""
        return torch.tensor(list(itertools.product(range(len(self.z)), repeat=K)))

    def tuple_probabilities(self, K):
        """Probability that K posterior samples are each tuple, with shape (B, V^K)."""
        return self.q[:, self.tuples(K)].prod(-1)

    def bound(self, K):
        """L_K = E log (1/K) sum_i w_i, with shape (B,)."""
        w = self.weights()[:, self.tuples(K)]
        return (self.tuple_probabilities(K) * w.mean(-1).log()).sum(1)

    def wake(self, K):
        """E sum_i (w_i / sum_j w_j) log q(z_i|x), with gradient to q in the last factor only: (B,)."""
        w = self.weights()[:, self.tuples(K)].detach()
        p = self.tuple_probabilities(K).detach()
        return (p[..., None] * w / w.sum(-1, keepdim=True) * self.q.log()[:, self.tuples(K)]).sum((1, 2))


def sleep(encoder, decoder, prior, dimensions):
    """E log q(z|x) over the model's joint p(z) p(x|z), with gradient to q only; a scalar."""
    x = states(dimensions)
    tables = Tables(encoder, decoder, prior, x)
    joint = (tables.likelihood * tables.prior).detach()
    return (joint * tables.q.log()).sum()
