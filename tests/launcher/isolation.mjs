// Two clinics' logins against the running API: each sees its own, and asking for the other's by its id finds nothing.
const url = process.env.URL;

async function login(email, password) {
  const answer = await fetch(`${url}/api/v1/auth/login`, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify({ email, password }),
  });
  if (answer.status !== 200) throw new Error(`${email} cannot log in: ${answer.status} ${await answer.text()}`);
  return (await answer.json()).access_token;
}

async function get(token, path) {
  const answer = await fetch(`${url}/api/v1${path}`, { headers: token ? { authorization: `Bearer ${token}` } : {} });
  return { status: answer.status, body: await answer.json().catch(() => null) };
}

function check(holds, what) {
  if (!holds) throw new Error(what);
}

const a = await login(process.env.A, process.env.A_PASSWORD);
const b = await login(process.env.B, process.env.B_PASSWORD);
for (const list of ['users', 'devices', 'gateways']) {
  const [of_a, of_b] = await Promise.all([get(a, `/${list}`), get(b, `/${list}`)]);
  const ids = (answer) => answer.body.items.map((item) => item.id);
  check(ids(of_a).length > 0 && ids(of_b).length > 0, `a clinic has no ${list}`);
  check(ids(of_a).every((id) => !ids(of_b).includes(id)), `both clinics see the same of ${list}`);
}
const [foreign] = (await get(b, '/users')).body.items;
const now = new Date();
const range = `from=${new Date(now - 3600_000).toISOString()}&to=${now.toISOString()}`;
check((await get(a, `/users/${foreign.id}`)).status === 404, 'a clinic reads the other’s wearer');
const readings = (token) => get(token, `/readings?user_id=${foreign.id}&reading_type=heart_rate&${range}`);
const own = await readings(b);
check(own.status === 200 && own.body.points.length > 0, `a clinic lacks its own readings: ${JSON.stringify(own).slice(0, 300)}`);
const stolen = await readings(a);
check(stolen.status === 404 || stolen.body.points?.length === 0, 'a clinic reads the other’s readings');
check((await get(null, '/users')).status === 401, 'somebody without a login is answered');
console.log('isolation: each clinic sees its own wearers, devices, gateways and readings, and none of the other’s');
