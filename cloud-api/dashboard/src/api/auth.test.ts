import { beforeEach, describe, expect, it, vi } from 'vitest';
import { Auth, type AuthPort } from './auth';
import { Problem, Unreachable, type Call } from './http';

const session = (token: string) => ({
  access_token: token,
  expires_in: 900,
  member: { id: 'm', email: 'a@b', role: 'clinician' },
  tenant: { id: 't', name: 'Clinic', slug: 'c', time_zone: 'Asia/Kolkata' },
});

class Server {
  time = 0;
  refreshes = 0;
  valid = '';
  answer: 'grant' | 'refuse' | 'away' = 'grant';
  readonly port: AuthPort = {
    now: () => this.time,
    exclusively: (work) => work(),
    call: async (request: Call): Promise<unknown> => {
      await Promise.resolve();
      if (request.path === '/auth/refresh') {
        if (this.answer === 'away') throw new Unreachable();
        if (this.answer === 'refuse') throw new Problem(401, 'No session', 'Log in.');
        this.valid = `token-${++this.refreshes}`;
        return session(this.valid);
      }
      if (request.token !== this.valid) throw new Problem(401, 'Unauthorized', '');
      return request.path;
    },
  };
}

describe('Auth', () => {
  let server: Server;
  let auth: Auth;
  beforeEach(async () => {
    server = new Server();
    auth = new Auth(server.port);
    await auth.resume();
  });

  it('refreshes once for many requests that find the token expired', async () => {
    server.valid = 'revoked';
    const answers = await Promise.all(['/a', '/b', '/c'].map((path) => auth.request({ path })));
    expect(answers).toEqual(['/a', '/b', '/c']);
    expect(server.refreshes).toBe(2);
  });

  it('refreshes before the token ends, not after', async () => {
    server.time = 899_000;
    await auth.request({ path: '/a' });
    expect(server.refreshes).toBe(2);
  });

  it('uses the token as long as it is good', async () => {
    await auth.request({ path: '/a' });
    await auth.request({ path: '/b' });
    expect(server.refreshes).toBe(1);
  });

  it('takes a token that another request fetched meanwhile instead of refreshing again', async () => {
    let release: () => void = () => {};
    const slow = new Promise<void>((r) => (release = r));
    const call = server.port.call;
    server.port.call = async (request) => {
      if (request.path === '/slow' && request.token === 'token-1') {
        await slow;
        throw new Problem(401, 'Unauthorized', '');
      }
      return call(request);
    };
    const late = auth.request({ path: '/slow' });
    server.valid = 'revoked';
    await auth.request({ path: '/a' });
    release();
    expect(await late).toBe('/slow');
    expect(server.refreshes).toBe(2);
  });

  it('ends the session when the server refuses, and tells', async () => {
    const heard = vi.fn();
    auth.subscribe(heard);
    server.answer = 'refuse';
    server.valid = 'revoked';
    await expect(auth.request({ path: '/a' })).rejects.toThrow('Log in.');
    expect(auth.session).toBeNull();
    expect(heard).toHaveBeenLastCalledWith(null);
  });

  it('keeps the session when the server is only away', async () => {
    server.answer = 'away';
    server.valid = 'revoked';
    await expect(auth.request({ path: '/a' })).rejects.toThrow(Unreachable);
    expect(auth.session).not.toBeNull();
    server.answer = 'grant';
    expect(await auth.request({ path: '/a' })).toBe('/a');
  });

  it('does not retry for ever when a fresh token is refused too', async () => {
    const calls = vi.fn(async (request: Call) => {
      if (request.path === '/auth/refresh') return session('new');
      throw new Problem(401, 'Unauthorized', '');
    });
    const stubborn = new Auth({ ...server.port, call: calls });
    await stubborn.resume();
    await expect(stubborn.request({ path: '/a' })).rejects.toThrow(Problem);
    expect(calls.mock.calls.filter(([r]) => r.path === '/a')).toHaveLength(2);
  });

  it('says that nobody is logged in when the browser has no cookie', async () => {
    server.answer = 'refuse';
    expect(await new Auth(server.port).resume()).toBeNull();
  });
});
