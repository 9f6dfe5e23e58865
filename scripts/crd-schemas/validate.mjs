// validate.mjs < OBJECTS   checks a JSON array of custom resources; prints a JSON array of problems for each.
//
// The compiled schemas accept unknown fields, like a cluster (it drops them), so a misspelled field would not
// be noticed. So each object is passed behind proxies that record which fields the validator never read:
// those are unknown to the schema.
import { readFileSync } from "node:fs";

const KEDA = "@kubernetes-models/keda/_schemas/ComGithubKedacoreKedaV2ApisKedaV1alpha1";
const MONITORING =
  "@kubernetes-models/prometheus-operator/_schemas/ComGithubPrometheusOperatorPrometheusOperatorPkgApisMonitoringV1";
const SCHEMAS = {
  "keda.sh/v1alpha1 ScaledObject": `${KEDA}ScaledObject`,
  "keda.sh/v1alpha1 TriggerAuthentication": `${KEDA}TriggerAuthentication`,
  "monitoring.coreos.com/v1 PodMonitor": `${MONITORING}PodMonitor`,
  "monitoring.coreos.com/v1 PrometheusRule": `${MONITORING}PrometheusRule`,
};

/** `value`, whose fields stay in `unread` until the validator reads them. */
function watched(value, path, unread) {
  if (value === null || typeof value !== "object") return value;
  const fields = new Map();
  for (const name of Object.keys(value)) unread.add(`${path}/${name}`);
  return new Proxy(value, {
    get(target, name) {
      if (!Object.hasOwn(target, name) || typeof name !== "string") return target[name];
      unread.delete(`${path}/${name}`);
      if (!fields.has(name)) fields.set(name, watched(target[name], `${path}/${name}`, unread));
      return fields.get(name);
    },
  });
}

async function problems(object) {
  const schema = SCHEMAS[`${object.apiVersion} ${object.kind}`];
  if (!schema) return ["no schema for this kind"];
  // The package does not export it, so import it by path.
  const { validate } = await import(new URL(`node_modules/${schema}.js`, import.meta.url));
  const unread = new Set();
  if (!validate(watched(object, "", unread)))
    return validate.errors.map((error) => `${error.instancePath}: must match ${error.keyword} ${JSON.stringify(error.params)}`);
  return [...unread].map((path) => `${path}: unknown field`);
}

const objects = JSON.parse(readFileSync(0, "utf8"));
console.log(JSON.stringify(await Promise.all(objects.map(problems))));
