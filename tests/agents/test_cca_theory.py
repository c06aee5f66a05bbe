"""The estimators of cca against exact enumeration: bias, variance, and the gradient of what they estimate."""

import collections
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlax

from podracer.agents.cca import losses
from podracer.agents.cca.config import ALL_ACTION, HINDSIGHT
from podracer.ops import episodes

pytestmark = pytest.mark.quick

# Exact enumeration, in float64: every decision of every trajectory, its probability, and what it is conditioned on.

LOGITS = np.array([[0.3, -0.4, 0.9], [0.2, 0.5, -0.6], [-0.7, 0.1, 0.4]])
ACTIONS = range(3)


def softmax(logits):
    return np.exp(logits) / np.sum(np.exp(logits), axis=-1, keepdims=True)


Decision = collections.namedtuple("Decision", "probability state phi action returns")


def conditionals(decisions, policy):
    """For every decision, exact: `V(x, phi)` `[N]`, `Q(x, phi, .)` and `P(.|x, phi)` `[N, A]`. Q is 0 where P is."""
    mass, total = collections.defaultdict(lambda: np.zeros(3)), collections.defaultdict(lambda: np.zeros(3))
    for d in decisions:
        mass[d.state, d.phi][d.action] += d.probability
        total[d.state, d.phi][d.action] += d.probability * d.returns
    key = [(d.state, d.phi) for d in decisions]
    q = np.array([np.divide(total[k], mass[k], out=np.zeros(3), where=mass[k] > 0) for k in key])
    posterior = np.array([mass[k] / mass[k].sum() for k in key])
    return np.sum(q * posterior, axis=-1), q, posterior


def gradients(estimator, decisions, logits):
    """The estimator's gradient with respect to `logits` `[S, A]` at every decision, `[N, S, A]`, by the agent's own losses."""
    value, q, posterior = conditionals(decisions, softmax(logits))
    with jax.enable_x64():
        state, action = (np.array([getattr(d, name) for d in decisions]) for name in ("state", "action"))
        returns = jnp.array([d.returns for d in decisions])
        chosen = jnp.asarray(q if estimator in ALL_ACTION else value[:, None])
        log_h = jnp.log(jnp.asarray(posterior))
        behaviour = jax.nn.log_softmax(jnp.asarray(logits))[state, action]

        def total(table):
            log_policy = jax.nn.log_softmax(table)[state]
            weights = losses.policy_weights(estimator, log_policy, action, behaviour, returns, chosen, log_h)
            return -losses.policy_loss(log_policy, weights)

        return np.asarray(jax.jacrev(total)(jnp.asarray(logits)))


def moments(grads, decisions):
    """Mean and variance (the trace of the covariance) under the decisions' probabilities."""
    probability = np.array([d.probability for d in decisions])
    mean = np.einsum("n,nsa->sa", probability, grads)
    return mean, np.einsum("n,nsa->", probability, np.square(grads)) - np.sum(np.square(mean))


NOISE = np.array([0.1, 0.2, 0.3, 0.4])
LUCK = np.array([-6.0, 3.0, 0.0, 5.0])


def bandit(kind):
    """One state, three actions, four outcomes: the reward is a part of the action's and a part of the noise's, and of both.

    The statistic is `constant`, the `noise`, `all` (noise and action), or `some`: the noise, and the action at a rate of 0.2,
    else another draw of the policy.
    """
    policy, decisions = softmax(LOGITS[0]), []
    for a, e, told in itertools.product(ACTIONS, range(4), ACTIONS):
        phi = {"constant": (), "noise": (e,), "all": (e, a), "some": (e, told)}[kind]
        share = 0.2 * (told == a) + 0.8 * policy[told]
        reward = (0.5, -1.0, 1.5)[a] + LUCK[e] + 0.3 * a * (e == 2)
        decisions.append(Decision(policy[a] * NOISE[e] * share, 0, phi, a, reward))
    return decisions


def bandit_gradient():
    policy = softmax(LOGITS[0])
    mean = np.zeros(3)
    for d in bandit("constant"):
        mean[d.action] += d.probability / policy[d.action] * d.returns
    return policy * (mean - policy @ mean)


def table(kind):
    """Squared bias and variance of each estimator."""
    decisions, exact = bandit(kind), bandit_gradient()
    rows = {}
    for estimator in HINDSIGHT:
        mean, variance = moments(gradients(estimator, decisions, LOGITS), decisions)
        rows[estimator] = np.sum(np.square(mean[0] - exact)), variance
    return rows


class TestEnumeration:
    def test_a_constant_statistic_is_the_policy_gradient(self):
        rows, decisions = table("constant"), bandit("constant")
        plain = gradients("actor_critic", decisions, LOGITS)
        np.testing.assert_allclose(gradients("cca", decisions, LOGITS), plain, atol=1e-12)
        np.testing.assert_allclose(rows["cca"], (0, moments(plain, decisions)[1]), atol=1e-10)
        np.testing.assert_allclose(rows["fc"], rows["cca"], atol=1e-10)
        np.testing.assert_allclose([rows["fc_all_action"], rows["cca_all_action"]], 0, atol=1e-10)

    def test_a_statistic_of_the_noise_alone_keeps_all_unbiased_and_cuts_the_variance(self):
        rows, plain = table("noise"), table("constant")["cca"][1]
        assert max(bias for bias, _ in rows.values()) < 1e-10
        assert rows["cca"][1] < 0.2 * plain
        assert rows["fc"][1] == pytest.approx(rows["cca"][1])
        assert rows["fc_all_action"][1] < rows["cca"][1]

    def test_a_statistic_that_gives_the_action_away_teaches_cca_nothing(self):
        rows = table("all")
        assert rows["cca"] == pytest.approx((np.sum(np.square(bandit_gradient())), 0), abs=1e-10)  # learned helplessness
        assert rows["fc"][0] > 1e-2  # rules actions out
        assert rows["fc_all_action"][0] < 1e-10

    def test_a_partial_leak_biases_cca_and_not_the_future_conditional_forms(self):
        rows = table("some")
        assert 1e-5 < rows["cca"][0] < np.sum(np.square(bandit_gradient()))
        assert rows["fc"][0] < 1e-10
        assert rows["fc_all_action"][0] < 1e-10

    def test_the_return_tells_as_much_as_it_may(self):
        # Conditional on the return: h rules actions out here, unless outcomes are shared; those of a coin are.
        coin = [Decision(p * q, 0, None, a, r) for a, p in enumerate(softmax(LOGITS[0])) for r, q in self._coin(a)]
        decisions = [d._replace(phi=d.returns) for d in coin]
        mean, _ = moments(gradients("hca_return", decisions, LOGITS), decisions)
        policy = softmax(LOGITS[0])
        q = np.array([sum(r * p for r, p in self._coin(a)) for a in ACTIONS])
        np.testing.assert_allclose(mean[0], policy * (q - policy @ q), atol=1e-10)

    @staticmethod
    def _coin(action):
        heads = (0.3, 0.5, 0.9)[action]
        return (2.0, heads), (-1.0, 1 - heads)

    def test_weights_of_actions_are_those_of_rlax(self):
        logits, q = jnp.asarray(LOGITS), jnp.asarray(LOGITS[::-1] + 1.0)

        def ours(logits):
            log_policy = jax.nn.log_softmax(logits)
            zero = jnp.zeros(3)
            weights = losses.policy_weights("cca_all_action", log_policy, jnp.zeros(3, jnp.int32), zero, zero, q)
            return jnp.mean(losses.policy_loss(log_policy, weights))

        np.testing.assert_allclose(jax.grad(ours)(logits), jax.grad(rlax.qpg_loss)(logits, q), atol=1e-6)


def walks(logits):
    """A problem of two steps: all trajectories. The noise (e, f) is drawn before; e helps to choose between states 1 and 2."""
    policy, found = softmax(logits), []
    for e, f, a, b in itertools.product((0, 1), (0, 1), ACTIONS, ACTIONS):
        state = 1 + (a + e) % 2
        first, second = 0.4 * a - 3.0 * e, (1.0, -0.5)[state - 1] * b + 5.0 * f + 2.0 * (a == 0)
        probability = (0.3, 0.7)[e] * (0.6, 0.4)[f] * policy[0, a] * policy[state, b]
        found.append((probability, (e, f), (0, state), (a, b), (first, second)))
    return found


def walk_gradient():
    def value(logits):
        log_policy = jax.nn.log_softmax(logits)
        terms = [
            p
            * sum(rewards)
            * jnp.exp(log_policy[0, a] + log_policy[s, b] - jax.lax.stop_gradient(log_policy[0, a] + log_policy[s, b]))
            for p, _, (_, s), (a, b), rewards in walks(LOGITS)
        ]
        return jnp.sum(jnp.stack(terms))

    with jax.enable_x64():
        return np.asarray(jax.grad(value)(jnp.asarray(LOGITS)))


class TestTwoSteps:
    @pytest.mark.parametrize("estimator", HINDSIGHT)
    def test_the_surrogates_gradient_is_that_of_the_value(self, estimator):
        decisions = []
        for p, noise, states, actions, rewards in walks(LOGITS):
            for t in (0, 1):
                # What is decided second is known to nobody's first state; future-conditional forms may see the state it led to.
                phi = (noise, states[1], 0) if estimator.startswith("fc_") and t == 0 else noise
                decisions.append(Decision(p, states[t], phi, actions[t], sum(rewards[t:])))
        mean, _ = moments(gradients(estimator, decisions, LOGITS), decisions)
        np.testing.assert_allclose(mean, walk_gradient(), atol=1e-6)

    def test_credit_through_later_states_is_exact(self):
        found = walks(LOGITS)
        probability = np.array([w[0] for w in found])
        later = np.zeros((3, 3))  # P(a | second state), unnormalised
        mean_reward, mass = np.zeros((3, 3)), np.zeros((3, 3))
        for p, _, (_, s), (a, b), rewards in found:
            later[s, a] += p
            for state, action, reward in ((0, a, rewards[0]), (s, b, rewards[1] - 2.0 * (a == 0))):
                mean_reward[state, action] += p * reward
                mass[state, action] += p
        # The bonus of the first action would make the second state no state of a Markov process: it is left out here.
        rewards = np.array([[w[4][0] for w in found], [w[4][1] - 2.0 * (w[3][0] == 0) for w in found]])
        state = np.array([w[2] for w in found]).T
        with jax.enable_x64():
            ones = jnp.ones((2, len(found)))
            steps = episodes.Transitions(jnp.asarray(rewards), ones.at[1].set(0), ones)
            pairs = losses.later_states(steps, jnp.asarray(rewards), jnp.full((3, len(found)), 7.0))
            assert pairs.discount.shape == (2, 3, len(found))
            assert jnp.sum(pairs.discount) == len(found)  # only the second state follows the first
            log_h = jnp.log(jnp.asarray(later / np.maximum(later.sum(-1, keepdims=True), 1e-300)))[state[1]]
            log_h = jnp.broadcast_to(log_h, (2, 3, *log_h.shape))
            reward = jnp.asarray(mean_reward / np.maximum(mass, 1e-300))[state]

            def total(table):
                log_policy = jax.nn.log_softmax(table)[state]
                weights = losses.state_hindsight_weights(log_policy, log_h, reward, pairs)
                return -jnp.sum(jnp.asarray(probability) * losses.policy_loss(log_policy, weights))

            def value(table):
                log_policy = jax.nn.log_softmax(table)
                likelihood = sum(log_policy[s, np.array([w[3][t] for w in found])] for t, s in enumerate(state))
                ratio = jnp.exp(likelihood - jax.lax.stop_gradient(likelihood))
                return jnp.sum(jnp.asarray(probability) * ratio * jnp.asarray(rewards.sum(0)))

            logits = jnp.asarray(LOGITS)
            np.testing.assert_allclose(jax.grad(total)(logits), jax.grad(value)(logits), atol=1e-10)


@pytest.mark.parametrize(("kind", "biased"), [("noise", False), ("all", True)])
def test_a_baseline_of_noise_has_no_correlation_with_the_score(kind, biased):
    decisions = bandit(kind)
    value, _, _ = conditionals(decisions, softmax(LOGITS))
    rng = np.random.default_rng(0)
    drawn = rng.choice(len(decisions), size=200_000, p=[d.probability for d in decisions])
    score = np.eye(3)[[d.action for d in decisions]] - softmax(LOGITS[0])
    samples = (score * value[:, None])[drawn]
    z = samples.mean(axis=0) / (samples.std(axis=0) / np.sqrt(len(drawn)))
    assert (np.max(np.abs(z)) > 6) == biased
    assert biased or np.max(np.abs(z)) < 4
